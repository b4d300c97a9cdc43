"""The fingerprint of a model: the same for the same layers and weights, whatever Keras calls them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tensorflow as tf

from models.identity import fingerprint

keras = tf.keras.layers


def _model(units: int = 3, activation: str = "relu", seed: int = 0, rate: float = 0.5) -> tf.keras.Model:
    tf.keras.utils.set_random_seed(seed)
    inner = tf.keras.Sequential([keras.Input((4,)), keras.Dense(units), keras.Activation(activation)])
    return tf.keras.Sequential([keras.Input((4,)), inner, keras.Dropout(rate), keras.Dense(2)])


def test_names_that_keras_numbers_do_not_count() -> None:
    first, second = _model(), _model()
    assert first.layers[-1].name != second.layers[-1].name
    assert fingerprint(first) == fingerprint(second)


@pytest.mark.parametrize(
    "other",
    [
        lambda: _model(units=4),
        lambda: _model(activation="tanh"),  # within a model that is a layer
        lambda: _model(rate=0.25),
        lambda: _model(seed=1),
    ],
)
def test_layers_and_weights_count(other: Callable[[], tf.keras.Model]) -> None:
    assert fingerprint(other()) != fingerprint(_model())


def test_a_weight_s_last_bit_counts() -> None:
    model = _model()
    before = fingerprint(model)
    kernel = model.layers[-1].kernel
    value = kernel.numpy()
    value.view("int32")[0, 0] ^= 1
    kernel.assign(value)
    assert fingerprint(model) != before
