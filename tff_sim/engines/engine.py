"""`Engine`: what carries out a round. TensorFlow Federated does so by itself, in `ProcessEngine`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import numpy as np

from device_runtime.errors import InputError
from device_runtime.examples import Examples
from device_runtime.tensors import Weights
from device_runtime.work import ClientWork
from tff_sim.algorithms.algorithm import COUNTS
from tff_sim.algorithms.client_data import client_dataset
from tff_sim.workers.connection import first_line


@dataclass(frozen=True)
class ClientTask:
    """One client's part in one round.

    Attributes:
        name: of the client.
        examples: its local data.
        seed: its own in this round; see `device_runtime.work.client_seed`.
        factor: its delta is multiplied by it: 1, but for an update that is corrupt or malicious.
    """

    name: str
    examples: Examples
    seed: int
    factor: float = 1.0


@dataclass(frozen=True)
class EngineRound:
    """What a round gave.

    Attributes:
        state: of the server after it; what the next round starts from.
        weights: the global weights after it, float32.
        train_loss: mean loss over all examples of all local steps, of clients whose loss is finite; NaN if none is.
        clients, examples: those whose deltas count.
        counts: whatever else was counted: deltas that were ``non_finite``, ``zeroed`` or ``clipped``, and ``no_step``,
            1 if the server left the model as it was, for want of a finite step.
    """

    state: Any
    weights: Weights
    train_loss: float
    clients: int
    examples: int
    counts: Mapping[str, int] = field(default_factory=dict)


class Engine(Protocol):
    """Carries out rounds; whatever goes from one to the next is in the state, a `LearningAlgorithmState` of TFF."""

    def initialize(self) -> Any:
        """The server's state before the first round: a structure of numpy arrays."""
        ...

    def round(self, state: Any, work: ClientWork, tasks: Sequence[ClientTask]) -> EngineRound:
        """One round: of these clients, at least one, with this work."""
        ...


class ProcessEngine:
    """Rounds of a `tff.learning.templates.LearningProcess` from `build_fed_avg`, within `tff_sim.local_worker()`.

    Raises:
        InputError: of a round, TensorFlow refuses what a client has, such as a label that the model has no output for.
    """

    def __init__(self, process: Any) -> None:
        self._process = process
        self._next = process.next

    def initialize(self) -> Any:
        return self._process.initialize()

    def round(self, state: Any, work: ClientWork, tasks: Sequence[ClientTask]) -> EngineRound:
        try:
            output = self._next(state, self._data(work, tasks))
        except grpc.RpcError as error:  # a worker that lives, and whose TensorFlow refuses what it is given
            raise InputError(
                f"TensorFlow can't train these clients ({first_line(error.details())}); do they fit the model?"
            ) from error
        measured = output.metrics["aggregator"]
        return EngineRound(
            state=output.state,
            weights=global_weights(output.state),
            train_loss=float(output.metrics["client_work"]["loss"]),
            clients=int(measured["clients"]),
            examples=int(measured["examples"]),
            counts=server_counts(output.metrics),
        )

    def _data(self, work: ClientWork, tasks: Sequence[ClientTask]) -> list[Any]:
        """What `_next` takes from each client."""
        return [client_dataset(task.examples, work, task.seed, task.factor) for task in tasks]


def global_weights(state: Any) -> Weights:
    """The global weights in a state, float32: as a process's `get_model_weights` has them, without a call of TFF's."""
    return tuple(np.asarray(value) for value in state.global_model_weights.trainable)


def server_counts(metrics: Mapping[str, Any]) -> dict[str, int]:
    """`EngineRound.counts` from the metrics of a process of `tff_sim.algorithms.fed_avg`."""
    counts = {name: int(metrics["aggregator"][name]) for name in COUNTS}
    return counts | {"no_step": int(metrics["finalizer"]["update_non_finite"])}
