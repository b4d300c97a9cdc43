"""Losses, and the clients' optimisers with a limit to the gradient's norm and a proximal term."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from models import ClientOptimizer
from tests.export.families.family import Family
from tests.export.parity_case import Array, Case

keras = tf.keras.layers

_CLASSES = 4
Labels = Callable[[np.random.Generator, tuple[int, ...]], Array]


def _classes(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.integers(0, _CLASSES, shape, np.int32)


def _shares(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.dirichlet(np.ones(_CLASSES), shape).astype(np.float32)


def _numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.normal(0, 2, (*shape, _CLASSES)).astype(np.float32)


def _bits(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.integers(0, 2, (*shape, _CLASSES)).astype(np.float32)


_LABELS: dict[str, Labels] = {
    "sparse_categorical_crossentropy": _classes,
    "categorical_crossentropy": _shares,
    "binary_crossentropy": _bits,
    "mean_squared_error": _numbers,
    "mean_absolute_error": _numbers,
    "huber": _numbers,
}


def _model(steps: int) -> tf.keras.Model:
    """Logits [B, 4], or [B, steps, 4]; with batch statistics, which no optimiser may move."""
    tf.keras.utils.set_random_seed(1)
    shape = (steps, 5) if steps else (5,)
    return tf.keras.Sequential(
        [keras.Input(shape), keras.Dense(6, "tanh"), keras.BatchNormalization(momentum=0.8), keras.Dense(_CLASSES)]
    )


def _family(loss: str, steps: int = 0, optimizer: ClientOptimizer | None = None, proximal: float = 0.0) -> Family:
    ahead = (steps,) if steps else ()
    labels = _LABELS[loss]

    def batch(rng: np.random.Generator, size: int) -> tuple[Array, Array]:
        x = rng.standard_normal((size, *ahead, 5)).astype(np.float32)
        return x, labels(rng, (size, *ahead))

    def make() -> Case:
        whole = loss == "sparse_categorical_crossentropy"
        shape = (None, *ahead) if whole else (None, *ahead, _CLASSES)
        return Case(
            _model(steps),
            tf.TensorSpec(shape, tf.int32 if whole else tf.float32),
            batch,
            loss,
            "accuracy" if "crossentropy" in loss else "mean_absolute_error",
            optimizer or ClientOptimizer(),
            proximal=proximal,
        )

    return Family(("",), make)


_SPARSE = "sparse_categorical_crossentropy"

FAMILIES = {
    **{f"loss_{loss}": _family(loss) for loss in _LABELS},
    **{f"loss_{loss}_each_step": _family(loss, steps=3) for loss in (_SPARSE, "categorical_crossentropy", "huber")},
    **{
        f"optimizer_{name}{'_clipped' if clip else ''}": _family(_SPARSE, 0, ClientOptimizer(name, clip_norm=clip), 0.3)
        for name in ("sgd", "momentum", "adam")
        for clip in (None, 0.2)
    },
}
