"""The aggregator: a running Σ n_k·delta_k and Σ n_k, in memory that does not depend on the number of reports."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from device_runtime.tensors import TensorSpec, Weights
from device_runtime.update import ClientUpdate


class Aggregate:
    """The weighted mean of the updates added so far.

    A running sum, because a list of a cohort's updates would hold hundreds of models; in float64, so that
    the order in which reports come changes the float32 result by a rounding at most.

    Attributes:
        clients: number of updates.
        examples: Σ n_k.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self.clients = 0
        self.examples = 0
        shapes = [[d for d in spec.shape if d is not None] for spec in specs]
        self._sums: list[npt.NDArray[np.float64]] = [np.zeros(shape, np.float64) for shape in shapes]
        self._loss_sum = 0.0
        self._loss_examples = 0

    def add(self, update: ClientUpdate) -> None:
        """Add a validated update: finite, of the right shapes, weight ≥ 1."""
        for total, delta in zip(self._sums, update.delta, strict=True):
            total += np.multiply(delta, float(update.weight), dtype=np.float64)
        self.clients += 1
        self.examples += update.weight
        if "loss" in update.metrics:
            self._loss_sum += update.weight * update.metrics["loss"]
            self._loss_examples += update.weight

    def result(self) -> Weights:
        """Σ n_k·delta_k / Σ n_k, float32.

        Raises:
            ValueError: nothing was added. Zeros would look like a round in which nobody learned anything.
        """
        if not self.examples:
            raise ValueError("the mean of no updates is not defined")
        examples = np.float64(self.examples)  # also of a sum that no 64-bit integer holds
        return tuple(np.asarray(total / examples, np.float32) for total in self._sums)

    @property
    def loss(self) -> float | None:
        """Mean training loss over the examples of the clients that reported one; None where that is no number."""
        if not self._loss_examples:
            return None
        mean = self._loss_sum / self._loss_examples
        return mean if math.isfinite(mean) else None
