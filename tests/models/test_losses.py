"""Losses and metrics against Keras's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models.losses import LOSSES
from models.metrics import METRICS

KERAS = {
    "binary_crossentropy": lambda: tf.keras.losses.BinaryCrossentropy(from_logits=True, reduction="none"),
    "categorical_crossentropy": lambda: tf.keras.losses.CategoricalCrossentropy(from_logits=True, reduction="none"),
    "huber": lambda: tf.keras.losses.Huber(delta=1.0, reduction="none"),
    "mean_absolute_error": lambda: tf.keras.losses.MeanAbsoluteError(reduction="none"),
    "mean_squared_error": lambda: tf.keras.losses.MeanSquaredError(reduction="none"),
    "sparse_categorical_crossentropy": lambda: tf.keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="none"
    ),
}
REGRESSIONS = ("huber", "mean_absolute_error", "mean_squared_error")
BINARY = "binary_crossentropy"


def _batch(loss: str, predictions: tuple[int, ...], outputs: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((*predictions, outputs)).astype(np.float32)
    if loss == "sparse_categorical_crossentropy":
        return rng.integers(0, outputs, predictions, np.int32), logits
    if loss == "categorical_crossentropy":
        return rng.dirichlet(np.ones(outputs), predictions).astype(np.float32), logits
    if loss == BINARY:
        return rng.integers(0, 2, logits.shape).astype(np.float32), logits
    return 2 * rng.standard_normal(logits.shape).astype(np.float32), logits


@pytest.mark.parametrize("predictions", [(6,), (3, 4)])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_keras_s_with_a_value_a_prediction(name: str, predictions: tuple[int, ...]) -> None:
    y, logits = _batch(name, predictions, 5)
    losses = LOSSES[name](tf.constant(y), tf.constant(logits))
    assert losses.shape == predictions
    np.testing.assert_allclose(losses, KERAS[name]()(y, logits), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shapes", [((6,), (6,)), ((6, 1), (6, 1)), ((6,), (6, 1)), ((6, 1), (6,))])
@pytest.mark.parametrize("name", [BINARY, *REGRESSIONS])
def test_a_single_output_may_have_an_axis_or_none(name: str, shapes: tuple[Any, Any]) -> None:
    y, logits = _batch(name, (6,), 1)
    expected = KERAS[name]()(y, logits)
    losses = LOSSES[name](tf.reshape(y, shapes[0]), tf.reshape(logits, shapes[1]))
    assert losses.shape == (6,)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
    for metric in METRICS if name == BINARY else ("mean_absolute_error",):
        assert METRICS[metric](name, tf.reshape(y, shapes[0]), tf.reshape(logits, shapes[1])).shape == (6,)


@pytest.mark.parametrize("name", [BINARY, *REGRESSIONS])
def test_labels_of_another_shape_are_not_broadcast(name: str) -> None:
    with pytest.raises(ValueError, match=r"^labels of shape \(6, 1\) don't fit logits of shape \(6, 3\)$"):
        LOSSES[name](tf.zeros((6, 1)), tf.zeros((6, 3)))


def test_whole_numbers_are_labels_too() -> None:
    y, logits = tf.constant([0, 1, 1]), tf.constant([[-1.0], [2.0], [-3.0]])
    np.testing.assert_allclose(LOSSES[BINARY](y, logits), np.log1p(np.exp([-1, -2, 3])), rtol=1e-5)
    np.testing.assert_allclose(LOSSES["mean_squared_error"](y, logits), [1, 1, 16])


@pytest.mark.parametrize("name", ["sparse_categorical_crossentropy", "categorical_crossentropy", BINARY])
def test_losses_stay_finite_for_large_logits(name: str) -> None:
    y = [1, 0] if name.startswith("sparse") else [[0.0, 1.0], [1.0, 0.0]]
    losses = LOSSES[name](tf.constant(y), tf.constant([[1000.0, -1000.0], [1000.0, -1000.0]])).numpy()
    np.testing.assert_allclose(losses, [1000.0 if name == BINARY else 2000.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize("predictions", [(40,), (10, 4)])
@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "categorical_crossentropy", BINARY])
def test_accuracy_is_keras_s(loss: str, predictions: tuple[int, ...]) -> None:
    y, logits = _batch(loss, predictions, 3)
    right = METRICS["accuracy"](loss, tf.constant(y), tf.constant(logits)).numpy()
    if loss == BINARY:
        expected = tf.keras.metrics.binary_accuracy(y, logits, threshold=0.0)
    elif loss == "categorical_crossentropy":
        expected = tf.keras.metrics.categorical_accuracy(y, logits)
    else:
        expected = tf.keras.metrics.sparse_categorical_accuracy(y, logits)
    assert right.shape == predictions
    np.testing.assert_allclose(right, expected, rtol=1e-6)
    assert 0 < right.mean() < 1


@pytest.mark.parametrize("loss", REGRESSIONS)
def test_accuracy_needs_classes(loss: str) -> None:
    with pytest.raises(ValueError) as caught:
        METRICS["accuracy"](loss, tf.zeros(3), tf.zeros(3))
    expected = f"the metric 'accuracy' needs a loss over classes, not {loss!r}; use 'mean_absolute_error'"
    assert str(caught.value) == expected


def test_mean_absolute_error_is_keras_s() -> None:
    y, logits = _batch("mean_squared_error", (7,), 3)
    measured = METRICS["mean_absolute_error"]("mean_squared_error", tf.constant(y), tf.constant(logits))
    np.testing.assert_allclose(measured, tf.keras.losses.mean_absolute_error(y, logits), rtol=1e-6)
