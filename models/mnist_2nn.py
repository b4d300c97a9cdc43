"""The 2NN of McMahan et al. 2017, section 3: two hidden layers of 200 units, 199,210 parameters."""

from __future__ import annotations

import tensorflow as tf

from models.spec import ModelSpec


def build() -> tf.keras.Model:
    """784-200-200-10 with ReLU. He initialisation: the paper does not say, and this trains fastest."""
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Flatten(data_format="channels_last"),
            layers.Dense(200, "relu", kernel_initializer="he_normal", name="hidden_1"),
            layers.Dense(200, "relu", kernel_initializer="he_normal", name="hidden_2"),
            layers.Dense(10, name="logits"),
        ],
        name="mnist_2nn",
    )


SPEC = ModelSpec(
    name="mnist_2nn",
    build=build,
    input=tf.TensorSpec((None, 28, 28, 1), tf.float32),
    label=tf.TensorSpec((None,), tf.int32),
    loss="sparse_categorical_crossentropy",
    metric="accuracy",
    source="McMahan et al. 2017 (arXiv 1602.05629), section 3, MNIST 2NN",
)
