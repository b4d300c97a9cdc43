"""Coordinate-wise median and trimmed mean (Yin et al. 2018) over shards of a round's clients.

Each client is dealt into one of S shards at random, a shard's value is the mean of its clients, and of the shards'
values the median or trimmed mean is taken, coordinate by coordinate. A client that means harm spoils one shard at most:
k of them are harmless where k ≤ ⌊βS⌋ (trimmed mean) or k < S/2 (median). With as many shards as clients it is the
simulation's median or trimmed mean over clients, to the bit. Fewer shards take less memory, and are nearer to the mean,
but are spoilt sooner: of shards of c clients each, a share p of which mean harm, 1 − (1 − p)**c are spoilt.

All clients count alike, in their shards and beyond, as in the simulation: the number of examples is the client's own
claim, and one that could weigh itself up would have its shard to itself without being dealt one.

Memory: S × 4 bytes a value for the shards, a `PartialSum` a thread while they are computed, then 0.8 MB a shard for the
values of some coordinates. 30 shards of the CNN (1,663,370 values) are 200 MB, of the 2NN (199,210) 24 MB; the mean
takes 12 bytes a value whatever the cohort. An update is read once, shard after shard.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from aggregation_server.aggregation.aggregate import Read, aggregate, in_order, merged, parts, sum_of
from aggregation_server.aggregation.partial_sum import PartialSum, Tally
from device_runtime.codec import shaped, values_of
from device_runtime.errors import InputError
from device_runtime.tensors import FloatArray, TensorSpec, Weights
from device_runtime.work import is_number

AGGREGATORS = ("mean", "median", "trimmed_mean")
_TRIM = 0.1
_MOST_SHARDS = 10_000
_COLUMNS = 1 << 16  # coordinates that are sorted at a time

Report = TypeVar("Report")


@dataclass(frozen=True)
class Aggregation:
    """How a round's updates become one.

    Attributes:
        name: ``mean``, weighted by examples; ``median`` of each coordinate; or ``trimmed_mean``, the mean of each
            coordinate without its smallest and its largest values.
        shards: S, of the latter two: values that a coordinate has. Clients fewer than that are a shard each.
        trim: β, the share of shards left out at each end by ``trimmed_mean``, 0 ≤ β < 0.5; None is a tenth.

    Raises:
        InputError: a value is out of range, or two do not go together; the message names options of the command line.
    """

    name: str = "mean"
    shards: int | None = None
    trim: float | None = None

    def __post_init__(self) -> None:
        if self.name not in AGGREGATORS:
            raise InputError(f"--aggregator should be one of {', '.join(AGGREGATORS)}, not {self.name!r}")
        if self.name == "mean":
            if self.shards is not None:
                raise InputError("--shards is for --aggregator median or trimmed_mean, not mean: leave it out")
        elif self.shards is None:
            raise InputError(f"--aggregator {self.name} needs --shards: each takes 4 bytes a weight in memory")
        elif not (type(self.shards) is int and 1 <= self.shards <= _MOST_SHARDS):
            raise InputError(f"--shards should be a whole number from 1 to {_MOST_SHARDS}, not {self.shards!r}")
        if self.trim is not None:
            if self.name != "trimmed_mean":
                raise InputError(f"--trim is for --aggregator trimmed_mean, not {self.name}: leave it out")
            if not (is_number(self.trim) and 0 <= self.trim < 0.5):
                raise InputError(f"--trim should be at least 0 and below 0.5, not {self.trim!r}")

    def of(self, values: FloatArray) -> FloatArray:
        """Of shards' values, float32 [shards, coordinates] → [coordinates]; ``median`` or ``trimmed_mean``."""
        if self.name == "median":
            return median(values)
        return trimmed_mean(values, _TRIM if self.trim is None else self.trim)


def aggregate_round(
    reports: Sequence[Report],
    read: Read[Report],
    specs: Sequence[TensorSpec],
    aggregation: Aggregation,
    key: tuple[int, int],
    *,
    threads: int = 1,
) -> tuple[Weights, Tally]:
    """A round's mean delta, or what stands for it, and what is counted of all reports.

    Args:
        reports: in the order of the clients' names; not empty.
        read: gives a report's update, validated; called in any thread.
        specs: the model's tensors.
        aggregation: of the task.
        key: what the dealing into shards follows from, such as the task's seed and the round's number, each from 0 to
            below 2**64. Clients should not know it before they have their names.
        threads: how many parts or shards are computed at a time; the bits do not depend on it.

    Raises:
        ValueError: there are no reports, or their updates are of several rounds or models.
    """
    if not reports:
        raise ValueError("the mean of no updates is not defined")
    if aggregation.shards is None:
        total = aggregate(reports, read, specs, threads=threads)
        return total.result(), total.tally
    dealt = deal(len(reports), aggregation.shards, key)
    rows = np.empty((len(dealt), values_of(specs)), np.float32)
    tally = Tally()
    shards = ([reports[place] for place in shard] for shard in dealt)
    compute = partial(_sum_of_shard, read=read, specs=specs)
    for row, total in zip(rows, in_order(compute, shards, threads), strict=True):
        row[:] = total.mean()
        tally += total.tally
    result = np.empty(rows.shape[1], np.float32)
    for start in range(0, result.size, _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        result[columns] = aggregation.of(rows[:, columns])
    return shaped(result, specs), tally


def deal(clients: int, shards: int, key: tuple[int, int]) -> list[list[int]]:
    """Clients' places in their order, dealt at random into shards whose sizes differ by one at most.

    No shard is empty: there are as many as clients where these are fewer. A shard's places are in order.
    """
    places = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64))).permutation(clients)
    count = min(clients, shards)
    return [sorted(places[shard::count].tolist()) for shard in range(count)]


def median(values: FloatArray) -> FloatArray:
    """The median of each coordinate: float32 [m, n] → [n]; of an even m, the mean of the two in the middle."""
    count = len(values)
    ordered = np.sort(values, axis=0)
    middle: FloatArray = np.float32(0.5) * ordered[(count - 1) // 2] + np.float32(0.5) * ordered[count // 2]
    return middle


def trimmed_mean(values: FloatArray, share: float) -> FloatArray:
    """The mean of each coordinate without its ⌊βm⌋ smallest and its ⌊βm⌋ largest values: float32 [m, n] → [n].

    Args:
        values: of m shards.
        share: β, 0 ≤ β < 0.5.
    """
    count = len(values)
    # 0.29 · 100 is 28.999…: what is whole but for rounding is meant to be whole
    cut = min(math.floor(share * count + 1e-9), (count - 1) // 2)
    kept = np.sort(values, axis=0)[cut : count - cut]
    return _sum(kept) / np.float32(len(kept))


def _sum(rows: FloatArray) -> FloatArray:
    """Float32 [m, n] → [n]: the rows' second half is added to their first until one is left; of an odd number, the
    middle one waits. The simulation adds in this order."""
    while (count := len(rows)) > 1:
        pairs = count // 2
        rows = np.concatenate([rows[:pairs] + rows[count - pairs :], rows[pairs : count - pairs]])
    total: FloatArray = rows[0]
    return total


def _sum_of_shard(shard: Sequence[Report], read: Read[Report], specs: Sequence[TensorSpec]) -> PartialSum:
    return merged((sum_of(part, read, specs, weighted=False) for part in parts(shard)), specs, weighted=False)
