"""The golden self-test: what Keras computed at export time, computed again on this device.

``golden.npz`` holds ``x`` and ``y`` (a batch), ``learning_rate``, ``steps`` (how many training steps on that
batch), ``logits`` (before them), ``losses`` (of each), ``w0`` … ``wN`` (the weights after them), ``undetermined``
(indices of weights that follow from rounding alone, such as a bias before a batch normalisation under Adam).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.bundle import GOLDEN, Bundle
from device_runtime.errors import IntegrityError
from device_runtime.tensors import Weights
from device_runtime.trainer import Trainer

# Relative to the largest value of each tensor. Another processor sums in another order, an error of about
# 1e-6 after a few steps; a wrong kernel is off by more than 1e-2. docs/parity.md has the measurements.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class SelfTestResult:
    """Largest relative difference to the golden values, and where it is."""

    ok: bool
    max_rel: float
    tensor: str


def relative_difference(got: object, want: object) -> float:
    """Largest |got − want| over the largest |want|; infinite where a value is not finite."""
    return _difference(got, want, 0.0)


def weight_differences(got: Weights, want: Weights) -> list[float]:
    """The same of each weight tensor, but over a thousandth of the model's largest weight where its own are smaller.

    A tensor may hold rounding errors alone: a bias before a batch normalisation has no gradient but those.
    """
    smallest = max((float(np.abs(weights).max()) for weights in want if weights.size), default=0.0) / 1000
    return [_difference(g, w, smallest) for g, w in zip(got, want, strict=True)]


def loss_difference(got: object, want: object) -> float:
    """The same of losses, but over 1 where they are smaller.

    A cross-entropy is a difference of logits: its rounding error is that of the logits, however small it is itself.
    """
    return _difference(got, want, 1.0)


def _difference(got: object, want: object, smallest_scale: float) -> float:
    actual, expected = np.asarray(got, np.float64), np.asarray(want, np.float64)
    scale = max(float(np.abs(expected).max()), smallest_scale) or 1.0
    difference = float(np.abs(actual - expected).max()) / scale
    return difference if np.isfinite(difference) else float("inf")


def self_test(bundle: Bundle, threads: int = 1) -> SelfTestResult:
    """Run the golden steps in the interpreter of this device; needs no Keras and no training data.

    Raises:
        IntegrityError: the bundle's artifact can't be loaded, or its golden values are not those of this model.
    """
    golden = bundle.golden()
    trainer = Trainer(bundle, threads)
    trainer.set_weights(bundle.initial_weights())
    try:
        differences = _differences(bundle, trainer, golden)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise IntegrityError(f"{bundle.file(GOLDEN)}: not the golden values of this model: {reason}") from None
    worst = max(differences, key=differences.__getitem__)
    return SelfTestResult(differences[worst] <= TOLERANCE, differences[worst], worst)


def _differences(bundle: Bundle, trainer: Trainer, golden: dict[str, npt.NDArray[Any]]) -> dict[str, float]:
    differences = {"logits": relative_difference(trainer.infer(golden["x"]), golden["logits"])}
    learning_rate = float(golden["learning_rate"])
    losses = [trainer.step(golden["x"], golden["y"], learning_rate) for _ in range(int(golden["steps"]))]
    differences["loss"] = loss_difference(losses, golden["losses"])
    expected = tuple(golden[f"w{index}"] for index in range(len(bundle.manifest.tensors)))
    found = weight_differences(trainer.get_weights(), expected)
    for index, (spec, difference) in enumerate(zip(bundle.manifest.tensors, found, strict=True)):
        if index not in golden["undetermined"]:
            differences[spec.name] = difference
    return differences
