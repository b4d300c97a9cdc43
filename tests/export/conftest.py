"""What the export's tests share: a small model, the runtimes, and the rows of layers that are compared in them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from export.lowering import LOWERINGS, Call, Lowered
from export.runtimes import Runtime
from models import ModelSpec
from tests.export.families import FAMILIES
from tests.export.parity_case import Case

LITERT = Path(__file__).resolve().parent.parent.parent / ".venv" / "litert" / "bin" / "python"


@pytest.fixture(scope="session")
def litert() -> Path:
    """The Python with ai-edge-litert."""
    if not LITERT.is_file():
        pytest.fail(f"{LITERT} is missing: run 'make setup'")
    return LITERT


@pytest.fixture(scope="session", params=["tflite-runtime", "ai-edge-litert"])
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """Each interpreter in a process of its own."""
    python = Path(sys.executable) if request.param == "tflite-runtime" else request.getfixturevalue("litert")
    with Runtime(python) as process:
        assert process.name.startswith(request.param)
        yield process


@pytest.fixture(scope="session")
def case_of() -> Callable[[str], Case]:
    """`case_of(family)`: its case, made once."""
    return cache(lambda name: FAMILIES[name].make())


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
