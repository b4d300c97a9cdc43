"""Our own layers against their formulas, and through a ``.keras`` file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import models
from models.layers import LocalResponseNormalization, PeepholeLSTMCell

pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def test_a_peephole_lstm_is_its_formula() -> None:
    units, inputs, steps = 3, 2, 4
    layer = tf.keras.layers.RNN(PeepholeLSTMCell(units, name="cell"), return_sequences=True)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, steps, inputs)).astype(np.float32)
    layer.build((None, steps, inputs))
    layer.set_weights([rng.standard_normal(w.shape).astype(np.float32) for w in layer.get_weights()])
    got = layer(x).numpy()

    names = ["kernel", "recurrent_kernel", "bias", "input_peephole", "forget_peephole", "output_peephole"]
    assert [weight.name.split("/")[-1] for weight in layer.weights] == [f"{name}:0" for name in names]
    kernel, recurrent, bias, p_i, p_f, p_o = (weight.astype(np.float64) for weight in layer.get_weights())
    h = c = np.zeros((5, units))
    for step in range(steps):
        i, f, new, o = np.split(x[:, step] @ kernel + h @ recurrent + bias, 4, axis=1)
        c, before = _sigmoid(f + p_f * c) * c + _sigmoid(i + p_i * c) * np.tanh(new), c
        h = _sigmoid(o + p_o * c) * np.tanh(c)
        np.testing.assert_allclose(got[:, step], h, atol=1e-6)
        assert (c != before).all()


def test_without_peepholes_it_is_keras_s_lstm() -> None:
    ours = tf.keras.layers.RNN(PeepholeLSTMCell(6), return_sequences=True)
    keras = tf.keras.layers.LSTM(6, return_sequences=True)
    x = np.random.default_rng(1).standard_normal((2, 7, 4)).astype(np.float32)
    keras(x), ours(x)
    np.testing.assert_array_equal(ours.get_weights()[2], keras.get_weights()[2])  # the forget gate's bias of 1
    ours.set_weights([*keras.get_weights(), *(np.zeros(6, np.float32) for _ in range(3))])
    np.testing.assert_allclose(ours(x), keras(x), atol=1e-6)


def test_local_response_normalization_is_its_formula() -> None:
    x = np.random.default_rng(2).standard_normal((2, 3, 3, 12)).astype(np.float32)
    got = LocalResponseNormalization(2, 1.5, 0.25, 0.75)(x).numpy()
    for channel in range(12):
        near = x[..., max(channel - 2, 0) : channel + 3].astype(np.float64)
        expected = x[..., channel] / (1.5 + 0.25 * (near**2).sum(axis=-1)) ** 0.75
        np.testing.assert_allclose(got[..., channel], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["cifar_cnn", "shakespeare_lstm"])
def test_a_model_with_them_goes_through_a_keras_file(name: str, tmp_path: Path) -> None:
    model = models.seeded_model(models.get(name), 0)
    model.save(tmp_path / "model.keras")
    again = tf.keras.models.load_model(tmp_path / "model.keras")
    assert models.tensor_names(again) == models.tensor_names(model)
    rng = np.random.default_rng(3)
    shape = (2, *model.input_shape[1:])
    x = rng.integers(0, 258, shape, np.int32) if name == "shakespeare_lstm" else rng.random(shape, np.float32)
    np.testing.assert_array_equal(again(x), model(x))
