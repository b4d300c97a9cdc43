"""``golden.npz``: a batch, and what Keras computes from it, for the self-test on the device.

Another processor rounds otherwise, so that an activation close to a kink (a ReLU at zero, a tie in a pooling window)
may fall on its other side there, and change the golden weights by far more than rounding. So a batch is chosen
whose results hardly move when the weights that they start from do, in a direction and in its opposite: a kink that
is close lies on one of the two sides.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.selftest import TOLERANCE, relative_difference, weight_differences
from device_runtime.tensors import Weights
from export.reference import KerasTrainer, symbols_of, synthetic_batch
from models import ModelSpec
from models.optimizers import PLAIN_SGD

STEPS = 3
BATCH = 4
LEARNING_RATES = (0.05, 0.01, 0.002, 0.0004)
JITTER = 3e-6
"""Relative change of the weights that the results have to stand: 25 times the spacing of float32 numbers."""
STEADY = TOLERANCE / 5
"""How far the results may move: what is left of the tolerance is for the device."""
_TRIES = 40
_NOTHING = 1e-5  # of the largest gradient: what rounding leaves of one that is zero
_DIRECTIONS = 2

Golden = dict[str, npt.NDArray[Any]]


def golden_file(spec: ModelSpec, weights: Weights, seed: int) -> bytes:
    """Bytes of ``golden.npz`` from Keras; its arrays are described in `device_runtime.selftest`.

    The batch is the first of 40 that is steady, or else the steadiest of them.
    """
    keras = KerasTrainer(spec, weights)
    rng = np.random.Generator(np.random.Philox(seed))
    around = [neighbour for _ in range(_DIRECTIONS) for neighbour in _neighbours(weights, rng)]
    classes, symbols = keras.model.output_shape[-1], symbols_of(keras.model)
    best: Golden = {}
    smallest = math.inf
    rate = LEARNING_RATES[0]
    idle: list[int] = []
    for attempt in range(_TRIES):
        x, y = synthetic_batch(spec, classes, BATCH, rng, symbols)
        if attempt:
            golden = _results(keras, weights, x, y, rate)
        else:
            golden = _falling(keras, weights, x, y)
            rate = float(golden["learning_rate"])
            idle = idle_tensors(spec, weights, x, y)
        movements = np.max([_movements(golden, _results(keras, near, x, y, rate)) for near in around], axis=0)
        loose = [index for index, movement in enumerate(movements[1:]) if idle and movement > STEADY]
        golden["undetermined"] = np.array(sorted({*idle, *loose}), np.int32)
        movement = float(np.delete(movements, golden["undetermined"] + 1).max())
        if not best or movement < smallest:
            best, smallest = golden, movement
        if smallest <= STEADY:
            break
    buffer = io.BytesIO()
    np.savez(buffer, **best)
    return buffer.getvalue()


def idle_tensors(spec: ModelSpec, weights: Weights, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> list[int]:
    """Indices of the tensors whose gradient is nothing but rounding, where the optimiser makes whole steps of that.

    A bias before a batch normalisation has no influence on the loss. SGD leaves it where it is; Adam divides its
    gradient by its own size, and moves it at random, and the moving mean behind it with it.
    """
    if spec.optimizer.name != "adam":
        return []
    plain = KerasTrainer(replace(spec, optimizer=PLAIN_SGD), weights)
    plain.step(x, y, 1.0)
    trainable = len(plain.model.trainable_variables)
    sizes = [float(np.abs(a - w).max()) for a, w in zip(plain.get_weights(), weights, strict=True)][:trainable]
    return [index for index, size in enumerate(sizes) if size < _NOTHING * max(sizes)]


def _falling(keras: KerasTrainer, weights: Weights, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Golden:
    """The results at the largest learning rate at which the loss falls.

    Where training diverges, so does every difference of rounding.
    """
    for rate in LEARNING_RATES:
        golden = _results(keras, weights, x, y, rate)
        if golden["losses"][-1] < golden["losses"][0]:
            break
    return golden


def _neighbours(weights: Weights, rng: np.random.Generator) -> tuple[Weights, Weights]:
    """The weights, each changed by about `JITTER` of itself; and changed by the same the other way."""
    jitters = [JITTER * rng.standard_normal(w.shape) for w in weights]
    one, other = (
        tuple((w * (1 + sign * jitter)).astype(np.float32) for w, jitter in zip(weights, jitters, strict=True))
        for sign in (1, -1)
    )
    return one, other


def _results(keras: KerasTrainer, weights: Weights, x: npt.NDArray[Any], y: npt.NDArray[Any], rate: float) -> Golden:
    keras.set_weights(weights)
    keras.reset_optimizer()
    logits = keras.infer(x)
    losses = [keras.step(x, y, rate) for _ in range(STEPS)]
    return {
        "x": x,
        "y": y,
        "learning_rate": np.array(rate, np.float32),
        "steps": np.array(STEPS, np.int32),
        "logits": logits,
        "losses": np.array(losses, np.float32),
        **{f"w{index}": value for index, value in enumerate(keras.get_weights())},
    }


def _movements(one: Mapping[str, npt.NDArray[Any]], other: Mapping[str, npt.NDArray[Any]]) -> list[float]:
    """How far the logits moved, and each weight."""
    got, want = (tuple(value for name, value in golden.items() if name.startswith("w")) for golden in (other, one))
    return [relative_difference(other["logits"], one["logits"]), *weight_differences(got, want)]
