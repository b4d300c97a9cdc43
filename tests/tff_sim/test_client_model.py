"""Which of a model's variables a client's computation leaves zero."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import tensorflow as tf

import models
from tff_sim.algorithms.client_model import client_model_builder


def _build() -> tf.keras.Model:
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            layers.Input((4,)),
            layers.Dense(3, kernel_initializer=tf.keras.initializers.Constant(0.25), name="frozen"),
            layers.BatchNormalization(name="normalised"),
            layers.Dense(2, bias_initializer="ones", name="head"),
        ]
    )
    model.get_layer("frozen").trainable = False
    return model


def test_trained_variables_are_zero_and_frozen_ones_keep_their_values() -> None:
    build = client_model_builder(replace(models.get("digits_mlp"), build=_build))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        model = build()
        session.run(tf.compat.v1.global_variables_initializer())
        values = {variable.name: session.run(variable) for variable in model.variables}
        trained = {variable.name for variable in models.trained_variables(model)}
    assert len(values) == 8
    assert len(trained) == 6  # scale, shift, mean, variance of the normalisation; kernel and bias of the head
    for name, value in values.items():
        if name in trained:
            np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(values["frozen/kernel:0"], np.full((4, 3), 0.25, np.float32))
