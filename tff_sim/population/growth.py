"""Clients whose examples come and go between rounds: "data is added and deleted" (McMahan et al. 2017, section 1).

Which of a client's examples exist in a round follows from seed, round and client alone, so rounds may be asked for in
any order, and an experiment that is taken up again finds what it would have found.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from device_runtime.errors import InputError
from device_runtime.examples import Examples
from tff_sim.pixels import rows
from tff_sim.population.base import Population
from tff_sim.population.wrapping import WrappedPopulation

_NEVER = 2**61


@dataclass(frozen=True)
class Growth:
    """How clients' examples change.

    Attributes:
        present: the share of a client's examples that are there in round 1.
        added: the probability with which one that is not there yet is added in the next round.
        deleted: the probability with which one that is there is deleted in the next round, for good.

    Raises:
        InputError: one of them is not from 0 to 1.
    """

    present: float = 1.0
    added: float = 0.0
    deleted: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value <= 1:
                raise InputError(f"--{name} should be from 0 to 1, not {value}")

    def existing(self, count: int, seed: int, client: str, round_number: int) -> npt.NDArray[np.int64]:
        """The numbers of a client's examples that exist in a round, in order; at least one.

        A device without examples does not check in, and that a client takes part is for others to decide: so, where
        none would exist, the one does that is deleted last of those added so far, or else the one that is added first.

        Args:
            count: of the client's examples, at least 1.
            seed: the experiment's.
            client: its name.
            round_number: counts from 1.
        """
        digest = hashlib.sha256(f"growth/{seed}/{client}".encode()).digest()
        rng = np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], "<u8")))
        born = np.where(rng.random(count) < self.present, 1, 1 + _waits(self.added, rng.random(count)))
        gone = born + _waits(self.deleted, rng.random(count))
        there = np.flatnonzero((born <= round_number) & (round_number < gone))
        if len(there):
            return there
        ever = born <= round_number
        return np.array([np.where(ever, gone, -1).argmax() if ever.any() else born.argmin()])


class GrowingPopulation(WrappedPopulation):
    """A population whose clients have, in each round, those of their examples that exist in it."""

    def __init__(self, base: Population, growth: Growth, seed: int, round_number: int = 1) -> None:
        super().__init__(base)
        self._growth = growth
        self._seed = seed
        self._round = round_number

    def examples(self, number: int) -> Examples:
        return rows(self._within.at(self._round).examples(number), self._existing(number))

    def sizes_now(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.array([len(self._existing(number)) for number in numbers.tolist()], np.int64)

    def _existing(self, number: int) -> npt.NDArray[np.int64]:
        return self._growth.existing(int(self.sizes[number]), self._seed, self.names.name(number), self._round)

    def at(self, round_number: int) -> Population:
        return GrowingPopulation(self._within, self._growth, self._seed, round_number)


def _waits(probability: float, uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Rounds until something of this probability happens, at least one: geometric, by inversion."""
    if probability == 0:
        return np.full(len(uniform), _NEVER)
    if probability == 1:
        return np.ones(len(uniform), np.int64)
    rounds = np.floor(np.log1p(-uniform) / np.log1p(-probability))
    waits: npt.NDArray[np.int64] = 1 + np.minimum(rounds, _NEVER).astype(np.int64)
    return waits
