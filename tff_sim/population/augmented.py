"""A population of CIFAR-10's images, cropped, mirrored and lightened at random for each client and round."""

from __future__ import annotations

import hashlib

import numpy as np

from device_runtime.examples import Examples
from tff_sim.datasets.cifar_images import distorted
from tff_sim.population.base import Population
from tff_sim.population.wrapping import WrappedPopulation


class AugmentedPopulation(WrappedPopulation):
    """Wraps a population of raw images, uint8 [n, 32, 32, 3]; gives crops, float32 [n, 24, 24, 3].

    What is drawn follows from seed, round and client alone.
    """

    def __init__(self, raw: Population, seed: int, round_number: int = 1) -> None:
        super().__init__(raw)
        self._seed = seed
        self._round = round_number

    def examples(self, number: int) -> Examples:
        raw = self._within.at(self._round).examples(number)
        digest = hashlib.sha256(f"augment/{self._seed}/{self._round}/{self.names.name(number)}".encode()).digest()
        rng = np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], "<u8")))
        return Examples(distorted(raw.x, rng), raw.y)

    def at(self, round_number: int) -> Population:
        return AugmentedPopulation(self._within, self._seed, round_number)
