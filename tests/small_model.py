"""A user's model with all that training has to know of: moving statistics, random numbers, layers without weights."""

from __future__ import annotations

import tensorflow as tf

keras = tf.keras.layers


def make_small() -> tf.keras.Model:
    """A convolutional network with batch normalisation and dropout, for the embedded digits."""
    layers = [
        keras.Input((8, 8, 1)),
        keras.Conv2D(4, 3, name="conv"),
        keras.BatchNormalization(name="norm"),
        keras.ReLU(),
        keras.Flatten(),
        keras.Dropout(0.25),
        keras.Dense(10, name="head"),
    ]
    return tf.keras.Sequential(layers, name="small")
