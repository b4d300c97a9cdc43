"""A population that gives another one's examples in another form."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tff_sim.client_names import ClientNames
from tff_sim.label_counts import Counts
from tff_sim.population.base import Population


class WrappedPopulation(Population):
    """The clients of the population within; what examples they have is for subclasses to say.

    `sizes` and `label_counts` are of all examples that a client ever has.
    """

    def __init__(self, within: Population) -> None:
        self._within = within

    @property
    def names(self) -> ClientNames:
        return self._within.names

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        return self._within.sizes

    @property
    def label_counts(self) -> Counts | None:
        return self._within.label_counts

    @property
    def identity(self) -> str | None:
        return self._within.identity

    @property
    def label_bounds(self) -> tuple[int, int] | None:
        return self._within.label_bounds
