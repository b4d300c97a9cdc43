"""What a round changes: trainable weights, and the statistics of batch normalisation that is not frozen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import models
from models.training import client_step

pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")

layers = tf.keras.layers


def _build() -> Any:
    """Batch normalisation at the top level, in a nested model, and frozen; and a layer that is never trained."""
    inner = tf.keras.Sequential([layers.Input((4,)), layers.BatchNormalization(name="inner_norm")], name="inner")
    frozen = layers.BatchNormalization(name="frozen_norm", trainable=False)
    fixed = layers.Dense(4, name="fixed", trainable=False)
    return tf.keras.Sequential(
        [
            layers.Input((3,)),
            layers.Dense(4, name="hidden"),
            layers.BatchNormalization(name="norm", momentum=0.5),
            inner,
            frozen,
            fixed,
            layers.Dense(2, name="logits"),
        ]
    )


SPEC = replace(
    models.get("digits_mlp"), name="normalised", build=_build, input=tf.TensorSpec((None, 3), tf.float32)
)  # fmt: skip
TRAINED = (
    "hidden/kernel", "hidden/bias", "norm/gamma", "norm/beta", "inner_norm/gamma", "inner_norm/beta",
    "logits/kernel", "logits/bias",
    "norm/moving_mean", "norm/moving_variance", "inner_norm/moving_mean", "inner_norm/moving_variance",
)  # fmt: skip


def test_statistics_follow_the_trainable_weights() -> None:
    assert models.tensor_names(_build()) == TRAINED
    assert [w.shape for w in models.initial_weights(SPEC, 0)] == [
        tuple(variable.shape) for variable in models.trained_variables(_build())
    ]
    model = models.seeded_model(models.get("mnist_cnn"), 0)
    assert [v.ref() for v in models.trained_variables(model)] == [v.ref() for v in model.trainable_variables]


def test_a_frozen_model_has_no_trained_variables() -> None:
    model = _build()
    model.trainable = False
    assert models.trained_variables(model) == []


@pytest.mark.parametrize("proximal", [0.0, 0.5])
def test_a_step_changes_exactly_these(proximal: float) -> None:
    model = models.seeded_model(SPEC, 0)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((16, 3)).astype(np.float32) + 3, rng.integers(0, 2, 16, np.int32)
    before = {variable.ref(): variable.numpy() for variable in model.variables}
    hidden = model.get_layer("hidden")(x).numpy()
    anchors = [variable.numpy() + 1 for variable in models.trained_variables(model)]
    client_step(SPEC, model, (), tf.constant(x), tf.constant(y), 0.1, proximal, anchors)
    trained = {variable.ref() for variable in models.trained_variables(model)}
    for variable in model.variables:
        assert (variable.numpy() != before[variable.ref()]).any() == (variable.ref() in trained), variable.name
    # Keras' own rule, without a pull: 0.5 of what was, 0.5 of the batch's
    norm = model.get_layer("norm")
    np.testing.assert_allclose(norm.moving_mean, 0.5 * hidden.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, 0.5 + 0.5 * hidden.var(axis=0), rtol=1e-5)
