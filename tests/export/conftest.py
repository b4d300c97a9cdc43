"""A model that is quick to convert and has every kind of layer that the export knows."""

from __future__ import annotations

from typing import Any

import pytest
import tensorflow as tf

from export.lowering import LOWERINGS, Call, Lowered
from models import ModelSpec


def build_tiny_cnn() -> Any:
    """Convolutions with both paddings, pooling, ReLU and dense layers on 12×12 images."""
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            layers.Input((12, 12, 2)),
            layers.Conv2D(4, (3, 5), padding="same", activation="relu", name="conv_same"),
            layers.MaxPool2D(),
            layers.Conv2D(6, 3, padding="valid", activation="relu", name="conv_valid"),
            layers.MaxPool2D((4, 2)),
            layers.Flatten(),
            layers.Dense(8, "relu", name="hidden"),
            layers.Dense(3, name="logits"),
        ],
        name="tiny_cnn",
    )


@pytest.fixture
def tiny_cnn() -> ModelSpec:
    return ModelSpec(
        name="tiny_cnn",
        build=build_tiny_cnn,
        input=tf.TensorSpec((None, 12, 12, 2), tf.float32),
        label=tf.TensorSpec((None,), tf.int32),
        loss="sparse_categorical_crossentropy",
        metric="accuracy",
        source="tests",
    )


@pytest.fixture
def negated_bias_add(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong gradient in every export: that of a bias with its sign flipped."""
    right = LOWERINGS["BiasAdd"]

    def wrong(call: Call) -> Lowered:
        lowered = right(call)
        assert lowered.pullback is not None
        pullback: Any = lowered.pullback
        return Lowered(lowered.outputs, lambda dy: (pullback(dy)[0], -pullback(dy)[1]))

    monkeypatch.setitem(LOWERINGS, "BiasAdd", wrong)
