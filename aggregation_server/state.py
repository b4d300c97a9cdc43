"""`ServerState`, and the finalizer that makes the next one from a round's mean delta."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from device_runtime.errors import IntegrityError
from device_runtime.tensors import TensorSpec, Weights, sha256
from device_runtime.weights import dump_weights, load_weights


@dataclass(frozen=True, eq=False)
class ServerState:
    """The model between two rounds.

    Attributes:
        round_number: number of committed rounds.
        weights: w_t, float32, in the manifest's order.
        data: the same as canonical safetensors bytes, which devices download.
    """

    round_number: int
    weights: Weights
    data: bytes

    @cached_property
    def identity(self) -> str:
        """SHA-256 of `data`."""
        return sha256(self.data)

    @classmethod
    def load(cls, round_number: int, data: bytes, specs: Sequence[TensorSpec]) -> ServerState:
        """The state whose weights are `data`.

        Raises:
            IntegrityError: these are not weights of a model with these tensors.
        """
        return cls(round_number, load_weights(data, specs, "stored weights"), data)

    @classmethod
    def of(cls, round_number: int, weights: Weights, specs: Sequence[TensorSpec]) -> ServerState:
        """The state with these weights.

        Raises:
            IntegrityError: a weight is not finite.
        """
        for tensor, spec in zip(weights, specs, strict=True):
            if not np.isfinite(tensor).all():
                raise IntegrityError(f"new weights: tensor {spec.name!r} holds values that are not finite")
        return cls(round_number, weights, dump_weights(weights, specs))

    def after(self, mean_delta: Weights, specs: Sequence[TensorSpec]) -> ServerState:
        """FedAvg's server step: w_{t+1} = w_t + Σ n_k·delta_k / Σ n_k.

        Raises:
            IntegrityError: a new weight is not finite. Each delta was, but a sum may overflow.
        """
        with np.errstate(over="ignore"):
            weights = tuple(w + delta for w, delta in zip(self.weights, mean_delta, strict=True))
        return ServerState.of(self.round_number + 1, weights, specs)
