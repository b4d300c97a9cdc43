"""`Trainer`: a bundle's training artifact, loaded in the TFLite interpreter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.batching import batch_indices
from device_runtime.bundle import RUNTIME, TRAIN_ARTIFACT, Bundle
from device_runtime.errors import IntegrityError, UpdateError
from device_runtime.examples import Examples
from device_runtime.interpreter import open_interpreter
from device_runtime.tensors import FloatArray, Weights, check_weights
from device_runtime.update import ClientUpdate
from device_runtime.work import ClientWork, step_seeds

_EVALUATION_BATCH = 256
_SIGNATURES = ("train", "evaluate", "infer", "set_weights", "get_weights", "anchor")


class DeadlineError(Exception):
    """The round's deadline passed during the local training; what was done so far is dropped."""


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and accuracy over `examples` examples."""

    loss: float
    accuracy: float
    examples: int


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
        self._names = [f"w{index}" for index in range(len(self.manifest.tensors))]

    def set_weights(self, weights: Weights, anchor: bool = True) -> None:
        """Replace all weights, and reset the optimiser's state.

        Args:
            weights: as the manifest says.
            anchor: whether they are also the centre of the proximal term from now on, which takes memory for another
                copy; without it, `step` has to be called without such a term.
        """
        check_weights(weights, self.manifest.tensors, "set_weights")
        self._run["set_weights"](**dict(zip(self._names, weights, strict=True)))
        if anchor:
            self._run["anchor"](unused=np.float32(0))

    def get_weights(self) -> Weights:
        """The current weights, float32, in the manifest's order."""
        values = self._run["get_weights"](unused=np.float32(0))
        return tuple(values[name] for name in self._names)

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

    def evaluate(self, examples: Examples) -> Evaluation:
        """Mean loss and accuracy of the current weights over `examples`."""
        totals = {"loss_sum": 0.0, "correct": 0.0, "count": 0.0}
        for start in range(0, len(examples), _EVALUATION_BATCH):
            stop = start + _EVALUATION_BATCH
            outputs = self._run["evaluate"](x=examples.x[start:stop], y=examples.y[start:stop])
            for name in totals:
                totals[name] += float(outputs[name])
        count = totals["count"]
        return Evaluation(totals["loss_sum"] / count, totals["correct"] / count, int(count))

    def train(
        self,
        weights: Weights,
        examples: Examples,
        work: ClientWork,
        round_number: int,
        expired: Callable[[], bool] = lambda: False,
    ) -> ClientUpdate:
        """ClientUpdate of McMahan et al. 2017, Algorithm 1: E epochs of SGD from `weights` on `examples`.

        Args:
            weights: w_t, where the training starts.
            examples: the client's n_k local examples.
            work: epochs, batch size, learning rate, proximal term and the seed of batch order and dropout.
            round_number: goes into the update.
            expired: asked after each step whether the deadline has passed.

        Returns:
            delta = weights after − weights before, weight n_k, and the mean loss of all steps' examples.

        Raises:
            DeadlineError: `expired` said so.
            UpdateError: the training diverged (reason ``non_finite``).
        """
        self.set_weights(weights, anchor=work.proximal > 0)
        loss_sum, seen = 0.0, 0
        steps = work.epochs * math.ceil(len(examples) / (work.batch_size or len(examples)))
        seeds = iter(step_seeds(work.seed, steps))
        for epoch in range(work.epochs):
            for indices in batch_indices(len(examples), work.batch_size, work.seed, epoch):
                x, y = examples.x[indices], examples.y[indices]
                loss = self.step(x, y, work.learning_rate, work.proximal, seed=int(next(seeds)))
                loss_sum += loss * len(indices)
                seen += len(indices)
                if expired():
                    raise DeadlineError
        if not math.isfinite(loss_sum):
            raise UpdateError("non_finite", "the training diverged: its loss is not finite; use a lower learning rate")
        delta = self.get_weights()
        for change, before in zip(delta, weights, strict=True):
            change -= before  # in place: a second copy of the model would be the peak of the process's memory
        return ClientUpdate(delta, len(examples), round_number, {"loss": loss_sum / seen})
