"""Which of a model's variables a client's computation leaves zero, and which models it does not take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import models
from device_runtime.errors import InputError
from device_runtime.work import ClientWork
from tff_sim import Algorithm, build_fed_avg, build_server_optimizer
from tff_sim.algorithms.client_model import client_model_builder

pytestmark = [
    pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning"),
    pytest.mark.usefixtures("tff_worker"),
]

layers = tf.keras.layers
KEPT = models.get("digits_mlp").build()


def _build() -> tf.keras.Model:
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


def _ending_in(last: Any) -> Callable[[], tf.keras.Model]:
    def build() -> tf.keras.Model:
        return tf.keras.Sequential([layers.Input((8, 8, 1)), layers.Flatten(), last()])

    return build


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            _ending_in(lambda: layers.Dense(10, kernel_regularizer="l2", name="held")),
            "layer 'held': its regularizer is no part of what a device trains; leave it out",
        ),
        (
            _ending_in(lambda: layers.Dense(10, "softmax", name="shares")),
            "layer 'shares': ends in softmax; sparse_categorical_crossentropy is computed from logits:"
            " leave softmax out",
        ),
        (lambda: KEPT, "build gives a model that was there before; it should make a new one each time"),
    ],
    ids=["regularizer", "softmax", "the same model"],
)
def test_a_model_that_would_train_otherwise_than_is_meant_is_refused(
    build: Callable[[], tf.keras.Model], message: str
) -> None:
    spec = replace(models.get("digits_mlp"), build=build)
    with pytest.raises(InputError) as caught:
        build_fed_avg(spec, ClientWork(), tuple(variable.numpy() for variable in build().trainable_variables))
    assert str(caught.value) == f"model 'digits_mlp': {message}"


def test_initial_weights_are_the_model_s_own() -> None:
    spec = models.get("digits_mlp")
    weights = models.initial_weights(spec, 0)
    expected = "float32[64, 64], float32[64], float32[64, 10], float32[10]"
    for given, told in (
        (weights[:-1], expected.removesuffix(", float32[10]")),
        (tuple(value.T for value in weights), expected.replace("64, 10", "10, 64")),
        (tuple(value.astype(np.float64) for value in weights), expected.replace("float32", "float64")),
        ((), "none"),
    ):
        with pytest.raises(InputError) as caught:
            build_fed_avg(spec, ClientWork(), given)
        assert str(caught.value) == (
            f"model 'digits_mlp': its initial weights should be {expected}, as models.initial_weights gives them,"
            f" not {told}"
        )


def test_a_model_s_variables_are_initial_weights_too() -> None:
    process = build_fed_avg(models.get("digits_mlp"), ClientWork(), KEPT.trainable_variables)
    before = process.get_model_weights(process.initialize()).trainable
    for value, variable in zip(before, KEPT.trainable_variables, strict=True):
        np.testing.assert_array_equal(value, variable.numpy())


def test_a_name_in_the_place_of_what_it_names_is_refused() -> None:
    spec, work = models.get("digits_mlp"), ClientWork()
    weights = models.initial_weights(spec, 0)
    name: Any = "fedadam"
    optimizer = "expected a ServerOptimizer, such as ServerOptimizer('fedadam'), not 'fedadam'"
    for call, message in (
        (lambda: Algorithm(name), optimizer),
        (lambda: build_server_optimizer(name), optimizer),
        (
            lambda: build_fed_avg(spec, work, weights, name),
            "expected an Algorithm, such as Algorithm(ServerOptimizer('fedadam')), not 'fedadam'",
        ),
        (
            lambda: build_fed_avg(name, work, weights),
            "expected a ModelSpec, such as models.get('digits_mlp'), not 'fedadam'",
        ),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == message
