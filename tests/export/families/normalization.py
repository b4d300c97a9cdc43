"""Normalisations: over the batch, with moving averages; over features, groups and neighbouring channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from models.layers import LocalResponseNormalization
from tests.export.families.family import branches, chain
from tests.export.parity_case import Row

keras = tf.keras.layers


def _images(make: Callable[[], Any]) -> Row:
    return lambda x: chain(x, keras.Conv2D(4, 1), make(), keras.Conv2D(2, 1))


def _vectors(make: Callable[[], Any]) -> Row:
    return lambda x: chain(x, keras.Dense(4), make(), keras.Dense(3, "tanh"))


FAMILIES = {
    "normalization2d": branches(
        (5, 6, 3),
        {
            "batch": _images(lambda: keras.BatchNormalization(momentum=0.8)),
            "batch_plain": _images(lambda: keras.BatchNormalization(center=False, scale=False)),
            "layer": _images(keras.LayerNormalization),
            "layer_axes": _images(lambda: keras.LayerNormalization((1, 2, 3))),
            "group": _images(lambda: keras.GroupNormalization(2)),
            "instance": _images(lambda: keras.GroupNormalization(-1)),
            "local_response": _images(lambda: LocalResponseNormalization(1, 1.0, 0.1, 0.75)),
            "local_response_wide": _images(lambda: LocalResponseNormalization(2, 2.0, 0.3, 0.5)),
        },
    ),
    "normalization1d": branches(
        (6,),
        {
            "batch": _vectors(lambda: keras.BatchNormalization(momentum=0.8, epsilon=0.1)),
            "layer": _vectors(keras.LayerNormalization),
            "layer_plain": _vectors(lambda: keras.LayerNormalization(center=False, scale=False)),
            "unit": _vectors(keras.UnitNormalization),
        },
    ),
}
