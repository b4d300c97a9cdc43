"""`Population`: named clients and their examples, of which memory need not hold more than a cohort's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt

from device_runtime.examples import Examples
from tff_sim.client_names import ClientNames
from tff_sim.label_counts import Counts, Summary, summarise


class Population(Mapping[str, Examples]):
    """Clients by name, and by number from 0 on.

    A client's examples are made when they are asked for, and not kept; so hold on to those of a cohort at the most.
    """

    @property
    @abstractmethod
    def names(self) -> ClientNames:
        """A sequence that makes each name when it is asked for, so that a cohort of it costs a cohort's names."""

    @property
    @abstractmethod
    def sizes(self) -> npt.NDArray[np.int64]:
        """How many examples each client has, [K]."""

    @property
    @abstractmethod
    def label_counts(self) -> Counts | None:
        """How often each client has each label, int32 [K, L]; None where labels are not classes, or too many."""

    @property
    def label_bounds(self) -> tuple[int, int] | None:
        """No label is below the first, none above the second; None where they are no whole numbers, or unknown."""
        counts = self.label_counts
        return None if counts is None else (0, counts.shape[1] - 1)

    @property
    def identity(self) -> str | None:
        """SHA-256 of all clients' examples, where it is written down; None where they would have to be read for it."""
        return None

    @abstractmethod
    def examples(self, number: int) -> Examples:
        """Those of a client by its number, at least one."""

    def sizes_now(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many examples each of these clients has in the round that `at` chose; at least one."""
        return self.sizes[numbers]

    def at(self, round_number: int) -> Population:
        """The same clients as they are in a round, which counts from 1; here nothing changes."""
        return self

    @cached_property
    def example_types(self) -> tuple[tuple[str, tuple[int, ...]], tuple[str, tuple[int, ...]]]:
        """dtype and shape of one example's features, and of its labels."""
        first = self.examples(0)
        return (str(first.x.dtype), first.x.shape[1:]), (str(first.y.dtype), first.y.shape[1:])

    def summary(self) -> Summary:
        """What it looks like, in numbers."""
        return summarise(self.sizes, self.label_counts)

    def __getitem__(self, name: str) -> Examples:
        number = self.names.find(name)
        if number is None:
            raise KeyError(name)
        return self.examples(number)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
