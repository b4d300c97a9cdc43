"""The CIFAR-10 network of McMahan et al. 2017, section 3, from an old TensorFlow tutorial: 1,068,298 parameters."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from models.layers import LocalResponseNormalization
from models.spec import ModelSpec


def build() -> tf.keras.Model:
    """Two 5×5×64 convolutions with 3×3 pooling and normalisation, dense 384, 192 and 10, on crops of 24×24×3.

    The first convolution is pooled and then normalised, the second normalised and then pooled, as in the tutorial.
    """
    layers = tf.keras.layers
    last = {"data_format": "channels_last"}  # whatever a user's keras.json says
    same = {"padding": "same", "activation": "relu", "kernel_initializer": "he_normal", **last}
    pool = {"pool_size": 3, "strides": 2, "padding": "same", **last}
    normalise: dict[str, Any] = {"depth_radius": 4, "bias": 1.0, "alpha": 0.001 / 9, "beta": 0.75}
    return tf.keras.Sequential(
        [
            layers.Input((24, 24, 3)),
            layers.Conv2D(64, 5, **same, name="conv_1"),
            layers.MaxPool2D(**pool, name="pool_1"),
            LocalResponseNormalization(**normalise, name="norm_1"),
            layers.Conv2D(64, 5, **same, name="conv_2"),
            LocalResponseNormalization(**normalise, name="norm_2"),
            layers.MaxPool2D(**pool, name="pool_2"),
            layers.Flatten(**last),
            layers.Dense(384, "relu", kernel_initializer="he_normal", name="hidden_1"),
            layers.Dense(192, "relu", kernel_initializer="he_normal", name="hidden_2"),
            layers.Dense(10, name="logits"),
        ],
        name="cifar_cnn",
    )


SPEC = ModelSpec(
    name="cifar_cnn",
    build=build,
    input=tf.TensorSpec((None, 24, 24, 3), tf.float32),
    label=tf.TensorSpec((None,), tf.int32),
    loss="sparse_categorical_crossentropy",
    metric="accuracy",
    source="McMahan et al. 2017 (arXiv 1602.05629), section 3, CIFAR-10; layers of the TensorFlow tutorial it names",
)
