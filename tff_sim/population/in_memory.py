"""A population that a partition deals from a data set in memory."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from device_runtime.examples import Examples
from tff_sim.client_names import ClientNames
from tff_sim.label_counts import Counts
from tff_sim.partition import Partition
from tff_sim.population.base import Population


class DealtPopulation(Population):
    """Clients of a partition; examples lie in memory once, in the data set, and a client's are copied from there."""

    def __init__(self, train: Examples, partition: Partition) -> None:
        self._train = train
        self.partition = partition

    @property
    def names(self) -> ClientNames:
        return self.partition.names

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        return self.partition.sizes

    @cached_property
    def label_counts(self) -> Counts | None:
        return self.partition.label_counts(self._train.y)

    def examples(self, number: int) -> Examples:
        hand = self.partition.hand(number)
        return Examples(self._train.x[hand], self._train.y[hand])
