"""A population that a partition deals from a data set in memory."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from device_runtime.examples import Examples
from tff_sim.client_names import ClientNames
from tff_sim.label_counts import Counts, count_labels
from tff_sim.partition import Partition
from tff_sim.pixels import rows
from tff_sim.population.base import Population


class DealtPopulation(Population):
    """Clients of a partition, whose examples lie one client after the other: a client's are a view, not to be changed.

    Args:
        train: the data set's examples; they are copied into the clients' order, and can be let go of.
        partition: of them.
    """

    def __init__(self, train: Examples, partition: Partition) -> None:
        self.partition = partition
        self._train = _ordered(train, partition.indices)

    @property
    def names(self) -> ClientNames:
        return self.partition.names

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        return self.partition.sizes

    @cached_property
    def label_counts(self) -> Counts | None:
        y = self._train.y
        if y.dtype.kind not in "iu" or not y.size:
            return None
        return count_labels(self.partition.offsets, lambda start, end: y[start:end], int(y.max()))

    @property
    def label_bounds(self) -> tuple[int, int] | None:
        y = self._train.y
        return (int(y.min()), int(y.max())) if y.dtype.kind in "iu" and y.size else None

    def examples(self, number: int) -> Examples:
        start, end = self.partition.offsets[number : number + 2]
        return rows(self._train, slice(start, end))


def _ordered(examples: Examples, indices: npt.NDArray[np.int64]) -> Examples:
    """The examples in this order, read-only; without a copy where it is theirs already, as with natural clients."""
    same = len(indices) == len(examples) and np.array_equal(indices, np.arange(len(examples)))
    ordered = rows(examples, slice(None) if same else indices)
    for held in vars(ordered).values():
        if isinstance(held, np.ndarray):
            held.flags.writeable = False
    return ordered
