"""The training step against its formula, with gradients worked out by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

import models
from models.training import client_step, evaluation_sums

pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")

SPEC = models.get("digits_mlp")
BATCH = 6
Array = npt.NDArray[np.float64]


def _batch() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    rng = np.random.default_rng(3)
    return rng.random((BATCH, 8, 8, 1), np.float32), rng.integers(0, 10, BATCH, np.int32)


def _by_hand(weights: list[Array], x: Array, y: npt.NDArray[np.int32]) -> tuple[float, list[Array]]:
    """Mean loss and gradients of the digits' perceptron, in float64."""
    w1, b1, w2, b2 = weights
    flat = x.reshape(len(x), -1)
    hidden = np.maximum(flat @ w1 + b1, 0)
    logits = hidden @ w2 + b2
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exp / exp.sum(axis=1, keepdims=True)
    loss = -np.log(probabilities[np.arange(len(y)), y]).mean()
    slope = (probabilities - np.eye(10)[y]) / len(y)
    back = (slope @ w2.T) * (hidden > 0)
    return float(loss), [flat.T @ back, back.sum(axis=0), hidden.T @ slope, slope.sum(axis=0)]


@pytest.mark.parametrize("proximal", [0.0, 0.7])
def test_a_step_is_the_formula(proximal: float) -> None:
    rate = 0.3
    model = models.seeded_model(SPEC, 0)
    x, y = _batch()
    before = [value.astype(np.float64) for value in model.get_weights()]
    rng = np.random.default_rng(5)
    anchors = [rng.normal(0, 0.1, value.shape).astype(np.float32) for value in before]
    loss, gradients = _by_hand(before, x.astype(np.float64), y)

    measured = client_step(SPEC, model, (), tf.constant(x), tf.constant(y), rate, proximal, anchors)

    # w ← w − η·(∇loss + μ·(w − anchor)); the loss is the one before the step, without the proximal term
    expected = [
        w - rate * (g + proximal * (w - anchor)) for w, g, anchor in zip(before, gradients, anchors, strict=True)
    ]
    assert float(measured) == pytest.approx(loss, rel=1e-5)
    for got, want in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-6)


def test_a_proximal_term_without_anchors_is_refused() -> None:
    x, y = _batch()
    with pytest.raises(ValueError, match="zip"):
        client_step(SPEC, models.seeded_model(SPEC, 0), (), tf.constant(x), tf.constant(y), 0.1, 0.5)


def test_evaluation_sums_losses_and_right_answers() -> None:
    model = models.seeded_model(SPEC, 1)
    x, _ = _batch()
    logits = model(x).numpy()
    y = logits.argmax(axis=1).astype(np.int32)
    y[:2] = (y[:2] + 1) % 10
    loss, _ = _by_hand([value.astype(np.float64) for value in model.get_weights()], x.astype(np.float64), y)
    loss_sum, right, count = evaluation_sums(SPEC, model, tf.constant(x), tf.constant(y))
    assert (float(right), float(count)) == (BATCH - 2, BATCH)
    assert float(loss_sum) == pytest.approx(BATCH * loss, rel=1e-5)
