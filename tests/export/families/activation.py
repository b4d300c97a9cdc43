"""Activations, between dense layers."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tests.export.families.family import branches, chain
from tests.export.parity_case import Row

keras = tf.keras.layers

_NAMED = [
    "relu", "relu6", "elu", "gelu", "swish", "sigmoid", "tanh", "softmax", "softplus", "selu",
    "softsign", "hard_sigmoid", "mish",
]  # fmt: skip


def _named(name: str) -> Row:
    return lambda x: keras.Dense(8, name)(x)


def _layer(make: Any) -> Row:
    return lambda x: chain(x, keras.Dense(8), make())


FAMILIES = {
    "activation": branches(
        (6,),
        {
            **{name: _named(name) for name in _NAMED},
            "exponential": lambda x: chain(x, keras.Dense(8, "tanh"), keras.Dense(8, "exponential")),
            "leaky_relu": _layer(lambda: keras.LeakyReLU(0.2)),
            "elu_alpha": _layer(lambda: keras.ELU(0.7)),
            "prelu": _layer(keras.PReLU),
            "thresholded_relu": _layer(lambda: keras.ThresholdedReLU(0.1)),
            "relu_max_slope": _layer(lambda: keras.ReLU(max_value=1.0, negative_slope=0.1, threshold=0.05)),
            "gelu_tanh": _layer(lambda: keras.Lambda(lambda x: tf.nn.gelu(x, approximate=True))),
            "softmax_layer": _layer(keras.Softmax),
            "log_softmax": _layer(lambda: keras.Lambda(tf.nn.log_softmax)),
            "dense": lambda x: chain(x, keras.Dense(5), keras.Dense(4, use_bias=False)),
        },
    )
}
