"""Parity: the same training steps in Keras and in the TFLite interpreter, compared after each step.

Both start from the bundle's weights and see the same batches. Float32 sums depend on their order, so the
two drift apart slowly, by some 1e-6 in 60 steps. There is one exception: where an activation lies so close
to a kink (a ReLU at zero, a tie in a pooling window) that the drift carries it over in one of the two, their
gradients differ for good. Then, and only then, the step is done again in Keras from the interpreter's own
weights: if the updates agree the gradient is right, and both go on from the same weights; if they don't,
parity fails. docs/parity.md derives the tolerances from measurements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

import models
from device_runtime.bundle import INFER_ARTIFACT, MANIFEST, Bundle
from device_runtime.errors import CheckFailedError, InputError, IntegrityError
from device_runtime.examples import Examples
from device_runtime.selftest import loss_difference, weight_differences
from device_runtime.tensors import Weights
from device_runtime.trainer import Trainer
from device_runtime.work import step_seeds
from export.golden import idle_tensors
from export.inference import InferenceReport, compare_inference
from export.reference import KerasTrainer, symbols_of, synthetic_batch
from models import ClientOptimizer, ModelSpec

TOLERANCE = 1e-4
"""Largest relative difference: of a weight tensor, over its largest weight; of a loss, over the loss or 1."""

UPDATE_TOLERANCE = 5e-3
"""Largest difference of one step's update from the same weights, over the largest element of that update."""

PROXIMAL = 0.1
_JITTERS = (3e-7,) * 6 + (1e-6,) * 6
"""Relative changes of the weights that are within the rounding errors of a forward pass."""
_BATCH_SIZES = (10, 1, 7, 32)
MINIMUM_STEPS = 60


@dataclass(frozen=True)
class Difference:
    """Largest differences of one tensor (or of the loss) over all steps."""

    name: str
    max_abs: float
    max_rel: float


@dataclass(frozen=True)
class ParityReport:
    """Outcome of a parity check.

    Attributes:
        steps: how many training steps were compared.
        differences: for the loss and for each weight tensor.
        tensor, step: the first difference that is not explained by a kink, or None; steps count from 1.
        kinks: the steps at which a kink was crossed, and Keras went on from the interpreter's weights.
        inference: of ``infer.tflite``, compared first of all.
    """

    steps: int
    differences: tuple[Difference, ...]
    tensor: str | None
    step: int | None
    kinks: tuple[int, ...]
    inference: InferenceReport

    @property
    def ok(self) -> bool:
        return self.tensor is None

    @property
    def worst(self) -> Difference:
        return max(self.differences, key=lambda difference: difference.max_rel)

    def to_json(self) -> dict[str, Any]:
        """Plain values; a difference that is not finite is None."""
        return {
            "ok": self.ok,
            "steps": self.steps,
            "max_abs": _number(max(difference.max_abs for difference in self.differences)),
            "max_rel": _number(self.worst.max_rel),
            "tensor": self.tensor,
            "step": self.step,
            "layer": layer_of(self.tensor),
            "kinks": list(self.kinks),
            "tolerance": TOLERANCE,
            "inference": self.inference.to_json(),
            "differences": {
                d.name: {"max_abs": _number(d.max_abs), "max_rel": _number(d.max_rel)} for d in self.differences
            },
        }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no infinity


def layer_of(tensor: str | None) -> str | None:
    """The Keras layer that a weight belongs to; None for the loss, and for None."""
    return tensor.split("/")[0] if tensor and "/" in tensor else None


def check_parity(
    bundle: Bundle,
    steps: int = MINIMUM_STEPS,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[int], None] = lambda step: None,
    spec: ModelSpec | None = None,
    examples: Examples | None = None,
) -> ParityReport:
    """Replay `steps` training steps in Keras and in the interpreter, and compare after each.

    The batches are synthetic, of 10, 1, 7 and 32 examples by turns; every fourth step has a proximal term.

    Args:
        bundle: to be checked.
        steps: at least 60.
        seed: of the batches and of the dropout masks.
        threads: of the interpreter.
        progress: called with the number of steps done.
        spec: the model, for a bundle that was made from a user's own; by default that of the registry with its name.
        examples: to measure the accuracy of ``infer.tflite`` on; by default synthetic ones.

    Raises:
        UnknownModelError: the registry does not know the bundle's model.
        InputError: too few steps.
        CheckFailedError: the registry's model has other tensors than the bundle.
    """
    if steps < MINIMUM_STEPS:
        raise InputError(f"parity: at least {MINIMUM_STEPS} steps are needed to show a drift, not {steps}")
    spec = replace(
        spec or models.get(bundle.manifest.name),
        loss=bundle.manifest.loss,
        metric=bundle.manifest.metric,
        optimizer=_optimizer(bundle),
    )
    weights = bundle.initial_weights()
    shapes = [tuple(variable.shape) for variable in models.trained_variables(spec.build())]
    if shapes != [tensor.shape for tensor in bundle.manifest.tensors]:
        raise CheckFailedError(f"{bundle.path}: its tensors are not those of the model {spec.name!r}; export it again")
    keras, lite = KerasTrainer(spec, weights), Trainer(bundle, threads)
    lite.set_weights(weights)

    names = ["loss", *(tensor.name for tensor in bundle.manifest.tensors)]
    max_abs, max_rel = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    kinks: list[int] = []
    inference = compare_inference(bundle, spec, keras.model, examples, seed)
    tensor = None if inference.ok else INFER_ARTIFACT
    golden = bundle.golden()
    rate = float(golden["learning_rate"])
    undetermined = idle_tensors(spec, weights, golden["x"], golden["y"])
    done = 0
    before = weights
    seeds = [0, *step_seeds(seed, steps).tolist()]  # of the dropout masks; steps count from 1
    for step, (x, y, proximal) in enumerate(_batches(spec, keras.model, steps, seed), start=1):
        if tensor is not None:
            break
        slots = keras.get_slots()
        loss, lite_loss = (trainer.step(x, y, rate, proximal, seed=seeds[step]) for trainer in (keras, lite))
        after = lite.get_weights()
        _carry_over(keras, after, undetermined)
        relative = _relative(names, (lite_loss, *after), (loss, *keras.get_weights()))
        if max(relative.values()) > TOLERANCE:

            def repeat(start: Weights, after: Weights = after, **step: Any) -> tuple[float, Weights]:
                keras.set_weights(start)
                keras.set_slots(step.pop("slots"))
                loss = keras.step(**step)
                _carry_over(keras, after, undetermined)
                return loss, keras.get_weights()

            again = partial(repeat, slots=slots, x=x, y=y, learning_rate=rate, proximal=proximal, seed=seeds[step])
            tensor = _unexplained(names, before, (lite_loss, after), again)
            if tensor is None:
                loss = lite_loss
                kinks.append(step)
                keras.set_weights(after)
                relative = _relative(names, (lite_loss, *after), (loss, *keras.get_weights()))
        for name, actual, expected in zip(names, (lite_loss, *after), (loss, *keras.get_weights()), strict=True):
            max_rel[name] = max(max_rel[name], relative[name])
            max_abs[name] = max(max_abs[name], _largest(np.asarray(actual) - np.asarray(expected)))
        before, done = after, step
        progress(step)
    differences = tuple(Difference(name, max_abs[name], max_rel[name]) for name in names)
    return ParityReport(done, differences, tensor, None if tensor is None else done, tuple(kinks), inference)


def _carry_over(keras: KerasTrainer, weights: Weights, undetermined: Sequence[int]) -> None:
    """Give Keras the interpreter's values of the tensors that follow from rounding alone."""
    if undetermined:
        own = keras.get_weights()
        keras.set_weights(tuple(weights[i] if i in undetermined else value for i, value in enumerate(own)))


def _optimizer(bundle: Bundle) -> ClientOptimizer:
    try:
        return ClientOptimizer.from_json(dict(bundle.manifest.optimizer))
    except ValueError as error:
        raise IntegrityError(f"{bundle.path / MANIFEST}: {error}; export the bundle again") from None


def _relative(names: Sequence[str], actual: tuple[Any, ...], expected: tuple[Any, ...]) -> dict[str, float]:
    differences = [loss_difference(actual[0], expected[0]), *weight_differences(actual[1:], expected[1:])]
    return dict(zip(names, differences, strict=True))


def _unexplained(
    names: Sequence[str],
    before: Weights,
    actual: tuple[float, Weights],
    repeat: Callable[[Weights], tuple[float, Weights]],
) -> str | None:
    """The loss or first tensor of a step that Keras does not compute from the same weights; None where it does.

    Or from weights that are the same but for rounding: an activation may lie on the kink itself, where even from equal
    weights the two fall on different sides.
    """
    tensor = _different_update(names, before, actual, repeat(before))
    rng = np.random.Generator(np.random.Philox(0))
    for jitter in _JITTERS if tensor is not None else ():
        start = tuple((w * (1 + jitter * rng.standard_normal(w.shape))).astype(np.float32) for w in before)
        loss, moved = repeat(start)
        shifted = tuple(w + (m - s) for w, m, s in zip(before, moved, start, strict=True))
        if _different_update(names, before, actual, (loss, shifted)) is None:
            return None
    return tensor


def _different_update(
    names: Sequence[str], before: Weights, actual: tuple[float, Weights], expected: tuple[float, Weights]
) -> str | None:
    """The loss or first tensor whose update, from the same weights and batch, differs; None if none does."""
    if not loss_difference(actual[0], expected[0]) <= TOLERANCE:
        return names[0]
    updates = [_largest(keras - start) for start, keras in zip(before, expected[1], strict=True)]
    smallest = max(updates) / 1000  # of rounding errors alone, see `weight_differences`
    for name, start, lite, keras, update in zip(names[1:], before, actual[1], expected[1], updates, strict=True):
        # A weight is rounded when the update is added, by up to half a unit in the last place on each side, and once
        # more when a start is shifted.
        rounding = 2 * float(np.spacing(np.abs(start).max()))
        allowed = UPDATE_TOLERANCE * max(update, smallest) + rounding
        if not _largest(lite - keras) <= allowed:
            return name
    return None


def _largest(values: npt.NDArray[Any]) -> float:
    largest = float(np.abs(values).max())
    return largest if np.isfinite(largest) else float("inf")


def _batches(
    spec: ModelSpec, model: Any, steps: int, seed: int
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any], float]]:
    rng = np.random.Generator(np.random.Philox(seed))
    classes, symbols = model.output_shape[-1], symbols_of(model)
    for step in range(steps):
        x, y = synthetic_batch(spec, classes, _BATCH_SIZES[step % len(_BATCH_SIZES)], rng, symbols)
        yield x, y, PROXIMAL if step % 4 == 3 else 0.0
