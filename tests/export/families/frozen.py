"""Layers that are not trained: they come with the artifact, and only the others' weights travel."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tests.export.families.family import Family, branches, chain
from tests.export.parity_case import Array, Case

keras = tf.keras.layers


def _frozen(layer: Any) -> Any:
    layer.trainable = False
    return layer


FAMILIES = {
    "frozen_vectors": branches(
        (6,),
        {
            "first": lambda x: chain(x, _frozen(keras.Dense(5, "tanh")), keras.Dense(4)),
            "between": lambda x: chain(x, keras.Dense(5), _frozen(keras.Dense(4, "tanh")), keras.Dense(3)),
            "batch_statistics": lambda x: chain(x, keras.Dense(5), _frozen(keras.BatchNormalization())),
        },
    ),
    "frozen_images": branches(
        (8, 8, 3),
        {
            "convolution_first": lambda x: chain(x, _frozen(keras.Conv2D(6, 3)), keras.Conv2D(4, 3, 2)),
            "convolution_between": lambda x: chain(x, keras.Conv2D(6, 3), _frozen(keras.Conv2D(4, 3, 2, "same"))),
            "depthwise_between": lambda x: chain(x, keras.Conv2D(6, 3), _frozen(keras.DepthwiseConv2D(3))),
            "transpose_between": lambda x: chain(x, keras.Conv2D(6, 3), _frozen(keras.Conv2DTranspose(4, 3, 2))),
            "batch_statistics": lambda x: chain(x, keras.Conv2D(5, 2), _frozen(keras.BatchNormalization())),
        },
    ),
    "frozen_sequences": branches(
        (7,),
        {
            "embedding": lambda x: chain(x, _frozen(keras.Embedding(5, 4)), keras.LSTM(3)),
            "lstm_between": lambda x: chain(x, keras.Embedding(5, 4), _frozen(keras.LSTM(3))),
        },
        symbols=5,
    ),
}


def mobile_net() -> Case:
    """A frozen MobileNetV2 under a new head; its weights are random, since none come with the package."""
    tf.keras.utils.set_random_seed(3)
    base = _frozen(
        tf.keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, include_top=False, weights=None, pooling="avg")
    )
    model = tf.keras.Sequential([keras.Input((32, 32, 3)), base, keras.Dense(5, name="head")])

    def batch(rng: np.random.Generator, size: int) -> tuple[Array, Array]:
        return rng.uniform(-1, 1, (size, 32, 32, 3)).astype(np.float32), rng.integers(0, 5, size, np.int32)

    label = tf.TensorSpec((None,), tf.int32)
    return Case(model, label, batch, "sparse_categorical_crossentropy", "accuracy", learning_rate=1.0)


FAMILIES["frozen_mobile_net"] = Family(("",), mobile_net)
