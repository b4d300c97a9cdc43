"""The aggregator: a running Σ n_k·delta_k and Σ n_k, in memory that does not depend on the number of reports."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from device_runtime.codec import EncodedUpdate, Total, shaped, undo_rotation, values_of
from device_runtime.tensors import TensorSpec, Weights

_FEW = 16  # updates that are added in float32 before their sum goes into the one in float64


class Aggregate:
    """The weighted mean of the updates added so far.

    A running sum, because a list of a cohort's updates would hold hundreds of models; in float64, so that
    the order in which reports come changes the float32 result by a rounding at most. Updates that are rotated are
    added as they are, and their sum is rotated back, once.

    Attributes:
        clients: number of updates.
        examples: Σ n_k.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self.clients = 0
        self.examples = 0
        self._specs = specs
        self._sum = np.zeros(values_of(specs), np.float64)
        self._rotated: _RotatedSum | None = None
        self._loss_sum = 0.0
        self._loss_examples = 0

    def add(self, update: EncodedUpdate) -> None:
        """Add a validated update: finite, of the right shapes and of this round, weight ≥ 1."""
        header = update.header
        if update.codec.rotated:
            if self._rotated is None:
                self._rotated = _RotatedSum(self._sum.size, header.round_number)
            self._rotated.add(update)
        else:
            self._sum += np.multiply(update.values(), float(header.weight), dtype=np.float64)
        self.clients += 1
        self.examples += header.weight
        if "loss" in header.metrics:
            self._loss_sum += header.weight * header.metrics["loss"]
            self._loss_examples += header.weight

    def result(self) -> Weights:
        """Σ n_k·delta_k / Σ n_k, float32.

        Raises:
            ValueError: nothing was added. Zeros would look like a round in which nobody learned anything.
        """
        if not self.examples:
            raise ValueError("the mean of no updates is not defined")
        examples = np.float64(self.examples)  # also of a sum that no 64-bit integer holds
        mean = (self._sum / examples).astype(np.float32)
        if self._rotated is not None:
            mean += self._rotated.mean(examples)
        return shaped(mean, self._specs)

    @property
    def loss(self) -> float | None:
        """Mean training loss over the examples of the clients that reported one; None where that is no number."""
        if not self._loss_examples:
            return None
        mean = self._loss_sum / self._loss_examples
        return mean if math.isfinite(mean) else None


class _RotatedSum:
    """Σ n_k·delta_k of the updates of one round, rotated."""

    def __init__(self, size: int, round_number: int) -> None:
        self._round_number = round_number
        self._sum = np.zeros(size, np.float64)
        self._recent = Total(size)
        self._count = 0

    def add(self, update: EncodedUpdate) -> None:
        update.add_to(self._recent, update.header.weight)
        self._count += 1
        if self._count % _FEW == 0:
            self._flush()

    def mean(self, examples: np.float64) -> npt.NDArray[np.float32]:
        """The sum over `examples`, rotated back; float32 [values]."""
        self._flush()
        with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for what is not finite
            mean = (self._sum / examples).astype(np.float32)
            undo_rotation(mean, self._round_number)
        return mean

    def _flush(self) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # as above
            self._sum += self._recent.settle()
        self._recent.clear()
