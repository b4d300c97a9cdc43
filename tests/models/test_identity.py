"""The fingerprint of a model: the same for what computes the same with the same weights, whatever it is called."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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


def _wired(
    scale: float = 2.0,
    constant: int = 0,
    skip: int = 0,
    times: int = 1,
    function: Callable[[Any], Any] = tf.nn.relu,
    only_training: float = 1.0,
    frozen: bool = False,
) -> tf.keras.Model:
    """What the configurations of the layers do not tell."""
    tf.keras.utils.set_random_seed(0)

    class Scaled(tf.keras.layers.Layer):
        def call(self, x: Any, training: bool = False) -> Any:
            return x * (only_training if training else 1.0)

    x = keras.Input((4,))
    numbers = np.zeros(4096, np.float32)
    numbers[constant] = 1.0
    a, b = keras.Dense(4, trainable=not frozen)(x), keras.Dense(4)(x)
    c = keras.Dense(4, activation=function)(a * scale + tf.reduce_sum(tf.constant(numbers)[:2048]))
    c = keras.Add()([c, (a, b)[skip]])
    shared = keras.Dense(4)
    for _ in range(times):
        c = shared(c)
    return tf.keras.Model(x, Scaled()(c))


@pytest.mark.parametrize(
    "other",
    [
        {"scale": 3.0},
        {"constant": 3000},
        {"skip": 1},
        {"times": 3},
        {"function": tf.nn.tanh},
        {"function": lambda x: tf.nn.relu(x) + 0.0},
        {"only_training": 5.0},
        {"frozen": True},
    ],
)
def test_what_is_computed_counts(other: dict[str, Any]) -> None:
    assert fingerprint(_wired(**other)) != fingerprint(_wired())


def test_the_same_code_elsewhere_is_the_same() -> None:
    def elsewhere(x: Any) -> Any:
        return tf.nn.tanh(x)

    assert fingerprint(_wired(function=elsewhere)) == fingerprint(_wired(function=tf.nn.tanh))


_RECURRENT = """
import tensorflow as tf
from models.identity import fingerprint
k = tf.keras.layers
for units in UNITS:
    tf.keras.utils.set_random_seed(0)
    layers = [k.Input((8,), dtype=tf.int32), k.Embedding(20, 4), k.LSTM(units, return_sequences=True)]
    print(fingerprint(tf.keras.Sequential([*layers, k.GRU(3, dropout=0.2), k.Dropout(0.3), k.Dense(3)])))
"""


def test_it_is_the_same_in_another_process() -> None:
    """With loops, whose functions have names of their own in each."""

    def told(units: str) -> list[str]:
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _RECURRENT.replace("UNITS", units)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": units[1]},
        )  # fmt: skip
        return run.stdout.split()

    (six,) = told("[6]")
    seven, again = told("[7, 6]")
    assert six == again != seven


def test_a_weight_s_last_bit_counts() -> None:
    model = _model()
    before = fingerprint(model)
    kernel = model.layers[-1].kernel
    value = kernel.numpy()
    value.view("int32")[0, 0] ^= 1
    kernel.assign(value)
    assert fingerprint(model) != before
