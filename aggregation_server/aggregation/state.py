"""`ServerState`, and the finalizer that makes the next one from a round's mean delta."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from aggregation_server.aggregation.server_optimizer import FED_AVG, ServerOptimizer
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
        moments: the server optimiser's state; empty for plain FedAvg.
    """

    round_number: int
    weights: Weights
    data: bytes
    moments: Weights = ()

    @cached_property
    def identity(self) -> str:
        """SHA-256 of `data`."""
        return sha256(self.data)

    @classmethod
    def load(
        cls,
        round_number: int,
        data: bytes,
        specs: Sequence[TensorSpec],
        optimizer: ServerOptimizer = FED_AVG,
        moments: bytes = b"",
    ) -> ServerState:
        """The state whose weights are `data`, and whose optimiser's state is `moments`: none at first.

        Raises:
            IntegrityError: these are not weights of a model with these tensors, or of no such optimiser.
        """
        return cls(round_number, load_weights(data, specs, "stored weights"), data, optimizer.load(moments, specs))

    @classmethod
    def of(cls, round_number: int, weights: Weights, specs: Sequence[TensorSpec], moments: Weights = ()) -> ServerState:
        """The state with these weights, and this state of the optimiser.

        Raises:
            IntegrityError: a weight is not finite.
        """
        require_finite(weights, specs, "new weights")
        return cls(round_number, weights, dump_weights(weights, specs), moments)

    def after(
        self, mean_delta: Weights, specs: Sequence[TensorSpec], optimizer: ServerOptimizer = FED_AVG
    ) -> ServerState:
        """The state after a round: by default FedAvg's, w_{t+1} = w_t + Σ n_k·delta_k / Σ n_k.

        Raises:
            IntegrityError: a new weight or moment is not finite. Each delta was, but a sum may overflow.
        """
        step, moments = self.step(mean_delta, specs, optimizer)
        return self.moved(step, moments, specs)

    def step(
        self, mean_delta: Weights, specs: Sequence[TensorSpec], optimizer: ServerOptimizer
    ) -> tuple[Weights, Weights]:
        """The optimiser's step from here, and its next state.

        Raises:
            IntegrityError: a moment is not finite.
        """
        step, moments = optimizer.step(mean_delta, self.moments or optimizer.initial(specs))
        require_finite(moments, optimizer.slots(specs), "the server's optimiser")
        return step, moments

    def moved(self, step: Weights, moments: Weights, specs: Sequence[TensorSpec]) -> ServerState:
        """The state after a round that changes the weights by `step`, and the optimiser's state to `moments`.

        Raises:
            IntegrityError: a new weight is not finite.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            weights = tuple(w + change for w, change in zip(self.weights, step, strict=True))
        return ServerState.of(self.round_number + 1, weights, specs, moments)


def require_finite(tensors: Weights, specs: Sequence[TensorSpec], where: str) -> None:
    """Raise `IntegrityError`, naming the tensor, where a value is NaN or infinite."""
    for tensor, spec in zip(tensors, specs, strict=True):
        if not np.isfinite(tensor).all():
            raise IntegrityError(f"{where}: tensor {spec.name!r} holds values that are not finite")
