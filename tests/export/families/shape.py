"""Layers that move elements: reshaping, padding, cropping, upsampling; and TimeDistributed."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tests.export.families.family import branches, chain
from tests.export.parity_case import Row

keras = tf.keras.layers


def _between(*makers: Any) -> Row:
    return lambda x: chain(x, keras.Conv2D(4, 1), *(make() for make in makers), keras.Conv2D(2, 2))


FAMILIES = {
    "shape2d": branches(
        (6, 7, 3),
        {
            "zero_padding": _between(lambda: keras.ZeroPadding2D(((1, 2), (0, 1)))),
            "cropping": _between(lambda: keras.Cropping2D(((1, 0), (2, 1)))),
            "upsampling_nearest": _between(lambda: keras.UpSampling2D((2, 3))),
            "upsampling_bilinear": _between(lambda: keras.UpSampling2D((2, 3), interpolation="bilinear")),
            "reshape": _between(lambda: keras.Reshape((7, 6, 4))),
            "permute": _between(lambda: keras.Permute((2, 1, 3))),
            "flatten": lambda x: chain(x, keras.Conv2D(4, 2), keras.Flatten(), keras.Dense(3, "tanh")),
            "rescaling": lambda x: chain(x, keras.Rescaling(0.5, 0.1), keras.Conv2D(2, 2)),
            "reverse": _between(lambda: keras.Lambda(lambda x: tf.reverse(x, [1, 2]))),
        },
    ),
    "shape1d": branches(
        (8, 3),
        {
            "zero_padding": lambda x: chain(x, keras.Dense(4), keras.ZeroPadding1D(2), keras.Conv1D(2, 2)),
            "cropping": lambda x: chain(x, keras.Dense(4), keras.Cropping1D((1, 2)), keras.Conv1D(2, 2)),
            "upsampling": lambda x: chain(x, keras.Dense(4), keras.UpSampling1D(2), keras.Conv1D(2, 2)),
            "reshape": lambda x: chain(x, keras.Dense(4), keras.Reshape((4, 8)), keras.Dense(3)),
            "permute": lambda x: chain(x, keras.Dense(4), keras.Permute((2, 1)), keras.Dense(3)),
            "repeat": lambda x: chain(x, keras.Flatten(), keras.Dense(4), keras.RepeatVector(3), keras.Dense(2)),
        },
    ),
    "time_distributed": branches(
        (4, 5, 4, 2),
        {
            "dense": lambda x: chain(x, keras.TimeDistributed(keras.Flatten()), keras.TimeDistributed(keras.Dense(3))),
            "recurrent": lambda x: chain(
                x,
                keras.TimeDistributed(keras.Conv2D(3, 3)),
                keras.TimeDistributed(keras.Flatten()),
                keras.LSTM(3),
            ),
        },
    ),
}
