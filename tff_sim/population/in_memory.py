"""A population that a partition deals from a data set in memory."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.examples import Examples
from tff_sim.client_names import ClientNames
from tff_sim.label_counts import Counts, count_labels
from tff_sim.partition import Partition
from tff_sim.population.base import Population


class DealtPopulation(Population):
    """Clients of a partition, whose examples lie one client after the other: a client's are a view, not to be changed.

    Args:
        train: the data set's examples; they are copied into the clients' order, and can be let go of.
        partition: of them.
    """

    def __init__(self, train: Examples, partition: Partition) -> None:
        self.partition = partition
        self._x, self._y = (_ordered(array, partition.indices) for array in (train.x, train.y))

    @property
    def names(self) -> ClientNames:
        return self.partition.names

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        return self.partition.sizes

    @cached_property
    def label_counts(self) -> Counts | None:
        if self._y.dtype.kind not in "iu" or not self._y.size:
            return None
        return count_labels(self.partition.offsets, lambda start, end: self._y[start:end], int(self._y.max()))

    def examples(self, number: int) -> Examples:
        start, end = self.partition.offsets[number : number + 2]
        return Examples(self._x[start:end], self._y[start:end])


def _ordered(array: npt.NDArray[Any], indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The rows in this order, read-only; without a copy where it is theirs already, as with natural clients."""
    same = len(indices) == len(array) and np.array_equal(indices, np.arange(len(array)))
    result = array.view() if same else array[indices]
    result.flags.writeable = False
    return result
