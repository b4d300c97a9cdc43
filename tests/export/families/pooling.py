"""Maximum and average poolings, with windows that tile, overlap, or leave gaps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tests.export.families.family import branches, chain
from tests.export.parity_case import Row

keras = tf.keras.layers


def _after_convolution(make: Callable[[], Any]) -> Row:
    return lambda x: chain(x, keras.Conv2D(4, 1), make())


def _after_dense(make: Callable[[], Any]) -> Row:
    return lambda x: chain(x, keras.Dense(4), make())


def _pool(kind: Any, size: int, stride: int, padding: str) -> Row:
    return _after_convolution(lambda: kind(size, stride, padding))


def _relu_used_twice(x: tf.Tensor) -> tf.Tensor:
    y = chain(x, keras.Conv2D(4, 1), keras.ReLU())
    return keras.Concatenate()([chain(y, keras.MaxPool2D(2), keras.Flatten()), keras.Flatten()(y)])


_POOL2D = {
    f"{name}_{size}_{stride}_{padding}": _pool(kind, size, stride, padding)
    for name, kind in (("max", keras.MaxPool2D), ("average", keras.AveragePooling2D))
    for size, stride in ((2, 2), (3, 2), (3, 1), (2, 3))
    for padding in ("same", "valid")
}

FAMILIES = {
    "pooling2d": branches(
        (9, 8, 3),
        {
            **_POOL2D,
            "max_after_relu": lambda x: chain(x, keras.Conv2D(4, 1), keras.ReLU(), keras.MaxPool2D(3, 2)),
            "max_oblong": _after_convolution(lambda: keras.MaxPool2D((2, 3), (3, 1), "same")),
            "max_tiled_after_relu": lambda x: chain(x, keras.Conv2D(4, 1), keras.ReLU(), keras.MaxPool2D((3, 2))),
            "relu_not_only_pooled": _relu_used_twice,
            "global_max": _after_convolution(keras.GlobalMaxPooling2D),
            "global_average": _after_convolution(lambda: keras.GlobalAveragePooling2D(keepdims=True)),
        },
    ),
    "pooling1d": branches(
        (11, 4),
        {
            "max": _after_dense(lambda: keras.MaxPool1D(3, 2, "same")),
            "average": _after_dense(lambda: keras.AveragePooling1D(3, 2, "same")),
            "max_tiled": _after_dense(lambda: keras.MaxPool1D(2)),
            "average_tiled": _after_dense(lambda: keras.AveragePooling1D(2)),
            "global_max": _after_dense(keras.GlobalMaxPooling1D),
            "global_average": _after_dense(keras.GlobalAveragePooling1D),
        },
    ),
}
