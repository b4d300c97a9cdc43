"""Layers of several inputs, and models with branches, skip connections, shared layers and models inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tests.export.families.family import branches, chain
from tests.export.parity_case import Row

keras = tf.keras.layers


def _of_two(make: Callable[[], Any]) -> Row:
    return lambda x: make()([keras.Dense(4)(x), keras.Dense(4)(x)])


def _broadcast(x: Any) -> Any:
    return keras.Multiply()([keras.Dense(4)(x), keras.Dense(1, "sigmoid")(x)])


def _shared(x: Any) -> Any:
    layer = keras.Dense(6, "tanh")
    return keras.Add()([layer(layer(x)), x])


def _nested(x: Any) -> Any:
    inner_input = keras.Input((6,))
    inner = tf.keras.Model(inner_input, keras.Dense(5, "tanh")(inner_input))
    outer = tf.keras.Sequential([keras.Input((6,)), inner, keras.Dense(6)])
    return chain(x, outer, outer, inner)


def _skip(x: Any) -> Any:
    y = keras.Dense(6, "tanh")(x)
    for _ in range(2):
        y = keras.Add()([y, chain(y, keras.Dense(6, "tanh"), keras.Dense(6))])
    return y


def _operators(x: Any) -> Any:
    y = keras.Dense(6)(x)
    return (y * 2.0 - x) / (1.0 + tf.abs(y)) + y[:, :1]


FAMILIES = {
    "merging": branches(
        (6,),
        {
            "add": _of_two(keras.Add),
            "subtract": _of_two(keras.Subtract),
            "multiply": _of_two(keras.Multiply),
            "average": _of_two(keras.Average),
            "maximum": _of_two(keras.Maximum),
            "minimum": _of_two(keras.Minimum),
            "concatenate": _of_two(keras.Concatenate),
            "dot": _of_two(lambda: keras.Dot(1)),
            "broadcast": _broadcast,
            "shared": _shared,
            "nested": _nested,
            "skip": _skip,
            "operators": _operators,
        },
    )
}
