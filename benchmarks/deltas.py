"""Real updates: what clients of a few rounds' federated training would report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.digits import enlarged
from device_runtime.bundle import Bundle
from device_runtime.examples import Examples
from device_runtime.tensors import FloatArray, TensorSpec, Weights
from device_runtime.trainer import Evaluation, Trainer
from device_runtime.work import ClientWork, client_seed
from tff_sim import datasets
from tff_sim.partition import partition

CLIENTS = 100
COHORT = 10
SEED = 0
_BATCH, _LEARNING_RATE = 10, 0.1
_ROUNDS = 3


@dataclass(frozen=True)
class Task:
    """Clients' examples, test examples, and what they are, in a few words."""

    clients: dict[str, Examples]
    test: Examples
    title: str


def load_task(data_dir: Path | None, clients: int = CLIENTS, dealing: str = "iid") -> Task:
    """MNIST dealt to so many clients, at random or otherwise; the embedded digits, enlarged, where there is no folder.

    Raises:
        DatasetError: the folder is missing, or a file in it is damaged.
    """
    if data_dir is None:
        data = datasets.load("digits")
        train, test, name = enlarged(data.train), enlarged(data.test), "embedded digits enlarged to 28×28"
    else:
        data = datasets.load("mnist", data_dir)
        train, test, name = data.train, data.test, "MNIST examples"
    dealt = partition(train, dealing, clients, SEED)
    return Task(dealt, test, f"{clients} clients × {len(train) // clients} {name}")


class Federation:
    """Federated averaging of one bundle's model on a task, in this process.

    Args:
        bundle: the model.
        task: whose clients train.
    """

    def __init__(self, bundle: Bundle, task: Task) -> None:
        self._task = task
        self._trainer = Trainer(bundle)
        self._draws = np.random.Generator(np.random.Philox(SEED))
        self.weights: Weights = bundle.initial_weights()
        self.specs: tuple[TensorSpec, ...] = tuple(bundle.manifest.tensors)
        self.model_id = bundle.manifest.model_id
        self.rounds = 0

    def cohort(self, size: int) -> list[str]:
        """Clients drawn at random."""
        return sorted(self._draws.choice(list(self._task.clients), size, replace=False).tolist())

    def updates(self, cohort: list[str]) -> Iterator[tuple[str, FloatArray]]:
        """Each client and its change of the weights in the next round (E = 1, B = 10, lr 0.1), flat float32."""
        number = self.rounds + 1
        for name in cohort:
            work = ClientWork(1, _BATCH, _LEARNING_RATE, seed=client_seed(SEED, number, name))
            trained = self._trainer.train(self.weights, self._task.clients[name], work, number)
            yield name, np.concatenate([tensor.reshape(-1) for tensor in trained.deltas()])

    def commit(self, change: npt.NDArray[np.float64]) -> None:
        """Add a round's mean change to the weights."""
        start, weights = 0, []
        for tensor in self.weights:
            weights.append((tensor + change[start : start + tensor.size].reshape(tensor.shape)).astype(np.float32))
            start += tensor.size
        self.weights = tuple(weights)
        self.rounds += 1

    def evaluate(self) -> Evaluation:
        """Of the current weights, on the test examples."""
        self._trainer.set_weights(self.weights)
        return self._trainer.evaluate(self._task.test)


def real_deltas(
    federation: Federation, clients: int = CLIENTS, tell: Callable[[str], None] = lambda figures: None
) -> FloatArray:
    """The changes of so many clients in the round after three of federated averaging, float32 [clients, values]."""
    for _ in range(_ROUNDS):
        tell(f"training, round {federation.rounds + 1}")
        changes = [change for _, change in federation.updates(federation.cohort(min(COHORT, clients)))]
        federation.commit(np.mean(changes, axis=0, dtype=np.float64))
    tell(f"training {clients} clients")
    changes = [change for _, change in federation.updates(federation.cohort(clients))]
    return np.stack(changes)
