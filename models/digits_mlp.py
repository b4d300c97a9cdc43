"""A small perceptron for the 8×8 digits that scikit-learn ships: 4,810 parameters, seconds to train."""

from __future__ import annotations

import tensorflow as tf

from models.spec import ModelSpec


def build() -> tf.keras.Model:
    """One hidden layer of 64 ReLU units and ten logits."""
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Flatten(data_format="channels_last"),
            layers.Dense(64, "relu", kernel_initializer="he_normal", name="hidden"),
            layers.Dense(10, name="logits"),
        ],
        name="digits_mlp",
    )


SPEC = ModelSpec(
    name="digits_mlp",
    build=build,
    input=tf.TensorSpec((None, 8, 8, 1), tf.float32),
    label=tf.TensorSpec((None,), tf.int32),
    loss="sparse_categorical_crossentropy",
    metric="accuracy",
    source="the smallest model that shows the whole way; data: UCI optical digits as in scikit-learn",
)
