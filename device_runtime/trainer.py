"""`Trainer`: a bundle's training artifact, loaded in the TFLite interpreter."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.batching import batch_indices
from device_runtime.bundle import RUNTIME, TRAIN_ARTIFACT, Bundle, Manifest, StoredVariable
from device_runtime.errors import IntegrityError, UpdateError
from device_runtime.examples import Examples
from device_runtime.interpreter import open_interpreter
from device_runtime.progress import Position, Progress
from device_runtime.tensors import FloatArray, Weights, check_weights
from device_runtime.update import ClientUpdate
from device_runtime.weights import WeightsFile
from device_runtime.work import ClientWork, step_seeds

_EVALUATION_BATCH = 256
_SIGNATURES = ("train", "evaluate", "infer", "write_variable", "read_variable", "reset", "anchor")


class StoppedError(Exception):
    """A local training was stopped after a step, for `reason`; `position` is how far it has come."""

    def __init__(self, reason: str, position: Position) -> None:
        super().__init__(reason)
        self.reason = reason
        self.position = position


@dataclass(frozen=True)
class Evaluation:
    """Sums over `examples` predictions: of their losses, and of those that were right by the model's metric."""

    loss_sum: float
    correct: float
    examples: int

    @property
    def loss(self) -> float:
        """Mean loss."""
        return self.loss_sum / self.examples

    @property
    def accuracy(self) -> float:
        """The share that was right, or the mean of the model's metric."""
        return self.correct / self.examples


class Trainer:
    """The signatures of a bundle's ``train.tflite`` as methods.

    Raises:
        IntegrityError: the interpreter can't load the artifact, it lacks a signature, or it is made for another
            class of runtime.
    """

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self.manifest = bundle.manifest
        path = str(bundle.file(TRAIN_ARTIFACT))
        if self.manifest.runtime != RUNTIME:
            raise IntegrityError(f"{path}: made for the runtime {self.manifest.runtime!r}; this one is {RUNTIME!r}")
        missing = [name for name in _SIGNATURES if name not in self.manifest.signatures]
        if missing:
            raise IntegrityError(f"{path}: the manifest names no signature {', '.join(missing)}")
        try:
            self._interpreter = open_interpreter(path, threads)
            self._run = {name: self._interpreter.get_signature_runner(name) for name in self.manifest.signatures}
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise IntegrityError(f"{path}: the TFLite interpreter can't load it: {reason}") from None
        for name, signature in self.manifest.signatures.items():
            for side in ("input", "output"):
                described = sorted(spec.name for spec in getattr(signature, f"{side}s"))
                if described != sorted(getattr(self._run[name], f"get_{side}_details")()):
                    raise IntegrityError(f"{path}: its signature {name!r} has other {side}s than the manifest says")
        self._seeded = any(spec.name == "seed" for spec in self.manifest.signatures["train"].inputs)

    def set_weights(self, weights: Weights | WeightsFile, anchor: bool = True) -> None:
        """Replace all weights, and reset the optimiser's state.

        Args:
            weights: as the manifest says.
            anchor: whether they are also the centre of the proximal term from now on, which takes memory for another
                copy; without it, `step` has to be called without such a term.
        """
        if not isinstance(weights, WeightsFile):
            check_weights(weights, self.manifest.tensors, "set_weights")
        for signature, inputs in write_calls(weights, self.manifest.variables):
            self._run[signature](**inputs)
        if anchor:
            self._run["anchor"](unused=np.float32(0))

    def get_weights(self) -> Weights:
        """The current weights, float32, in the manifest's order."""
        return tuple(tensors(self.manifest, self._read))

    def step(
        self,
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        learning_rate: float,
        proximal: float = 0.0,
        *,
        seed: int = 0,
    ) -> float:
        """One training step on a batch x [B, …], y [B, …]; the batch's mean loss before the step.

        `seed`, 0 ≤ seed < 2**31, is of the dropout masks; an artifact without dropout takes none.
        """
        inputs = {"x": x, "y": y, "learning_rate": np.float32(learning_rate), "proximal": np.float32(proximal)}
        if self._seeded:
            inputs["seed"] = np.int32(seed)
        outputs = self._run["train"](**inputs)
        return float(outputs["loss"])

    def infer(self, x: npt.NDArray[Any]) -> FloatArray:
        """Logits, float32 [B, …]."""
        logits: FloatArray = self._run["infer"](x=x)["logits"]
        return logits

    def evaluate(
        self, examples: Examples, batch_size: int = _EVALUATION_BATCH, look: Callable[[], None] = lambda: None
    ) -> Evaluation:
        """Loss and accuracy of the current weights over `examples`.

        Args:
            examples: to look at.
            batch_size: how many at a time; it is a matter of memory, and changes the sums by rounding alone.
            look: called after each batch; what it raises ends the evaluation.
        """
        totals = {"loss_sum": 0.0, "correct": 0.0, "count": 0.0}
        for start in range(0, len(examples), batch_size):
            stop = start + batch_size
            outputs = self._run["evaluate"](x=examples.x[start:stop], y=examples.y[start:stop])
            for name in totals:
                totals[name] += float(outputs[name])
            look()
        return Evaluation(totals["loss_sum"], totals["correct"], int(totals["count"]))

    @property
    def variable_sizes(self) -> tuple[int, ...]:
        """Elements of the variables that a training's progress consists of, by their numbers."""
        return (
            *(variable.size for variable in self.manifest.variables),
            *map(math.prod, self.manifest.optimizer_state),
        )

    def train(
        self,
        weights: Weights | WeightsFile,
        examples: Examples,
        work: ClientWork,
        round_number: int,
        stop: Callable[[Position], str | None] = lambda position: None,
        progress: Progress | None = None,
    ) -> Trained:
        """ClientUpdate of McMahan et al. 2017, Algorithm 1: E epochs of SGD from `weights` on `examples`.

        Args:
            weights: w_t, where the training starts; a file of them takes no memory while it goes on.
            examples: the client's n_k local examples.
            work: epochs, batch size, learning rate, proximal term and the seed of batch order and dropout.
            round_number: goes into the update.
            stop: asked after each step, with where the training stands, why to stop; None is to go on.
            progress: where the training goes on from, and is saved as it goes, and when it is stopped. The caller
                sees to it that it is of these very weights, examples and work.

        Returns:
            delta = weights after − weights before, weight n_k, and the mean loss of all steps' examples.

        Raises:
            StoppedError: `stop` gave a reason.
            UpdateError: the training diverged (reason ``non_finite``).
        """
        batches = math.ceil(len(examples) / (work.batch_size or len(examples)))
        seeds = step_seeds(work.seed, work.epochs * batches)
        position = begun = self._begin(weights, work, progress)
        began = time.monotonic() - position.seconds
        first, skipped = divmod(position.steps, batches)
        for epoch in range(first, work.epochs):
            order = batch_indices(len(examples), work.batch_size, work.seed, epoch)
            for indices in islice(order, skipped if epoch == first else 0, None):
                x, y = examples.x[indices], examples.y[indices]
                loss = self.step(x, y, work.learning_rate, work.proximal, seed=int(seeds[position.steps]))
                if not math.isfinite(loss):
                    raise UpdateError(
                        "non_finite", "the training diverged: its loss is not finite; use a lower learning rate"
                    )
                position = Position(
                    position.steps + 1,
                    position.loss_sum + loss * len(indices),
                    position.seen + len(indices),
                    time.monotonic() - began,
                )
                reason = stop(position)
                if progress is not None and (reason is not None or progress.due(position.steps)):
                    progress.save(position, map(self._read, range(len(self.variable_sizes))))
                if reason is not None:
                    raise StoppedError(reason, position)
        # In a file, the weights outlast the interpreter, which then need not be there beside the update's making.
        saved = progress is not None and (
            position == begun or progress.save(position, map(self._read, range(len(self.variable_sizes))))
        )
        after = progress.opened() if progress is not None and saved else nullcontext(self._read)
        metrics = {"loss": position.loss_sum / position.seen}
        return Trained(self.manifest, after, weights, len(examples), round_number, metrics)

    def _begin(self, weights: Weights | WeightsFile, work: ClientWork, progress: Progress | None) -> Position:
        self.set_weights(weights, anchor=work.proximal > 0)
        restored = None if progress is None else progress.restore(self._restore)
        return restored or Position()

    def _read(self, number: int) -> FloatArray:
        values: FloatArray = self._run["read_variable"](number=np.int32(number))["values"]
        return values

    def _restore(self, number: int, values: FloatArray) -> None:
        weights = len(self.manifest.variables)
        # A scalar has to come back as one: the interpreter takes a tensor of rank 0 for one whose shape is open.
        if number >= weights:
            values = values.reshape(self.manifest.optimizer_state[number - weights])
        self._run["write_variable"](number=np.int32(number), values=values)


class Trained:
    """What a local training came to. The delta is computed tensor by tensor, when it is asked for.

    Attributes:
        weight, round_number, metrics: as in `ClientUpdate`.
    """

    def __init__(
        self,
        manifest: Manifest,
        after: AbstractContextManager[Callable[[int], FloatArray]],
        start: Weights | WeightsFile,
        weight: int,
        round_number: int,
        metrics: Mapping[str, float],
    ) -> None:
        self.weight = weight
        self.round_number = round_number
        self.metrics = metrics
        self._manifest = manifest
        self._after = after
        self._start = start

    def deltas(self) -> Iterator[FloatArray]:
        """The delta's tensors in the manifest's order, one at a time, and once.

        To be called while a file of the start's weights is open; where no progress was kept, before the trainer does
        anything else, else as long as that is there.

        Raises:
            IntegrityError: the progress was damaged meanwhile.
        """
        with self._after as read:
            yield from tensors(self._manifest, read, minus=self._start)

    def collect(self) -> ClientUpdate:
        """All of it at once."""
        return ClientUpdate(tuple(self.deltas()), self.weight, self.round_number, self.metrics)


def tensors(
    manifest: Manifest, read: Callable[[int], FloatArray], minus: Weights | WeightsFile | None = None
) -> Iterator[FloatArray]:
    """The weights, float32, in the manifest's order, less those of `minus`; `read` gives a variable by its number."""
    numbered = enumerate(manifest.variables)
    for spec in manifest.tensors:
        tensor = np.empty([size for size in spec.shape if size is not None], np.float32)
        flat, filled = tensor.reshape(-1), 0
        while filled < flat.size:  # a manifest's variables are the weights, run after run
            number, variable = next(numbered)
            values = read(number)
            part = flat[filled : filled + variable.size]
            part[:] = values.reshape(tensor.shape[::-1]).T.reshape(-1) if variable.transposed else values
            if minus is not None:
                part -= _part(minus, variable)
            filled += variable.size
        yield tensor


def write_calls(
    weights: Weights | WeightsFile, variables: Sequence[StoredVariable]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The calls, by signature and inputs, after which an artifact has these weights and its optimiser is new."""
    for number, variable in enumerate(variables):
        values = _part(weights, variable)
        if variable.transposed:
            values = np.ascontiguousarray(values.reshape(_shape(weights, variable.tensor)).T).reshape(-1)
        yield "write_variable", {"number": np.int32(number), "values": values}
    yield "reset", {"unused": np.float32(0)}


def _shape(weights: Weights | WeightsFile, tensor: int) -> tuple[int, ...]:
    return weights.shapes[tensor] if isinstance(weights, WeightsFile) else weights[tensor].shape


def _part(weights: Weights | WeightsFile, variable: StoredVariable) -> FloatArray:
    """The values that a variable of the artifact holds, flat and in the weight's own order."""
    if isinstance(weights, WeightsFile):
        return weights.read(variable.tensor, variable.start, variable.size)
    return weights[variable.tensor].reshape(-1)[variable.start : variable.start + variable.size]
