"""Kernels are checked one by one in each runtime; what is wrong is seen, named, and never reaches a bundle."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import models
from device_runtime.errors import CheckFailedError
from export import acceptance
from export.acceptance import self_test_in
from export.bundle_writer import export_bundle
from export.kernel_check import Operator, operators_of, wrong_kernels
from export.lowering import LOWERINGS, Call, Lowered
from export.runtimes import RUNTIMES, Runtime, RuntimeFailedError
from export.training_graph import TrainingGraph
from models import ModelSpec
from models.state import all_layers
from tests.export.families import FAMILIES
from tests.export.parity_case import Case

pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")


@pytest.fixture(scope="session")
def operators(case_of: Callable[[str], Case]) -> dict[str, Operator]:
    """The distinct operators of all rows' training functions."""
    found: dict[str, Operator] = {}
    for name in FAMILIES:
        case = case_of(name)
        layers = {layer.name for layer in all_layers(case.model)}
        graph = TrainingGraph(case.spec, case.model, shared=False)
        train = graph.functions()["train"]
        inputs: dict[str, Any] = {
            "x": case.steps[0].x,
            "y": case.steps[0].y,
            "learning_rate": np.float32(0.05),
            "proximal": np.float32(0.1),
            "seed": np.int32(3),
        }
        found |= {operator.key: operator for operator in operators_of(train, inputs, layers)}
    return found


def test_every_operator_of_every_row_has_a_right_kernel(operators: dict[str, Operator], runtime: Runtime) -> None:
    assert len(operators) > 3000
    assert [str(kernel) for kernel in wrong_kernels(operators.values(), runtime)] == []


def _function(body: Callable[[Any], Any], shape: tuple[int, ...]) -> Any:
    return tf.function(body, autograph=False).get_concrete_function(tf.TensorSpec((None, *shape), name="x"))


def _reverse_both(x: tf.Tensor) -> tf.Tensor:
    with tf.name_scope("model/turned"):
        return tf.reverse(x, [1, 2]) + tf.reverse(x, [1])


def test_the_wrong_reverse_is_found(runtime: Runtime) -> None:
    """Over two axes at once REVERSE_V2 is wrong in tflite-runtime 2.14, and right over one, and in its successor."""
    x = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    found = wrong_kernels(operators_of(_function(_reverse_both, (3, 4)), {"x": x}, ["turned"]), runtime)
    if runtime.name.startswith("ai-edge-litert"):
        assert found == []
        return
    (kernel,) = found
    assert (kernel.operator, kernel.builtins, kernel.layer) == ("ReverseV2", ("REVERSE_V2",), "turned")
    assert kernel.shapes[0] == (2, 3, 4) and kernel.difference > 0.1
    assert re.fullmatch(
        r"the kernel of REVERSE_V2 \(TensorFlow's ReverseV2 of \[2, 3, 4\], \[2\]\) in layer 'turned' on "
        r"tflite-runtime 2\.14\.0: is off by \S+ of its largest value",
        str(kernel),
    )


def test_what_can_t_be_converted_is_named_among_the_others(runtime: Runtime) -> None:
    def body(x: tf.Tensor) -> tf.Tensor:
        return tf.math.lgamma(tf.exp(x)) + tf.sin(x)

    x = np.ones((2, 3), np.float32)
    (kernel,) = wrong_kernels(operators_of(_function(body, (3,)), {"x": x}), runtime)
    assert (kernel.operator, kernel.builtins) == ("Lgamma", ())
    assert "can't be converted to TFLite builtins" in kernel.problem


def _spec(activation: Any) -> ModelSpec:
    keras = tf.keras.layers

    def build() -> Any:
        return tf.keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.Conv2D(2, 3, name="seen"),
                keras.Lambda(activation, name="turned"),
                keras.Flatten(),
                keras.Dense(10, name="logits"),
            ]
        )

    return replace(models.get("digits_mlp"), name="turning", build=build)


@pytest.fixture
def turning() -> ModelSpec:
    return _spec(lambda x: tf.reverse(x, [1, 2]))


@pytest.fixture
def reverse_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lowering that trusts the wrong kernel."""

    def at_once(call: Call) -> Lowered:
        (x, _), axes = call.inputs, [1, 2]
        return Lowered((tf.reverse(x, axes),), lambda dy: (tf.reverse(dy, axes), None))

    monkeypatch.setitem(LOWERINGS, "ReverseV2", at_once)


def test_a_wrong_kernel_never_reaches_a_bundle(turning: ModelSpec, reverse_at_once: None, tmp_path: Path) -> None:
    message = (
        r"^the exported artifact does not compute what Keras does: on tflite-runtime 2\.14\.0, .* differs by .*; "
        r"the kernel of REVERSE_V2 \(TensorFlow's ReverseV2 of .*\) in layer 'turned' on tflite-runtime 2\.14\.0: .*; "
        r"nothing was written$"
    )
    with pytest.raises(CheckFailedError, match=message):
        export_bundle(turning, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_lowering_is_told_from_a_wrong_kernel(tmp_path: Path, negated_bias_add: None) -> None:
    message = r"on tflite-runtime 2\.14\.0, in layer '(\w+)', \1/bias differs by .*; its kernels are right one by one: "
    with pytest.raises(CheckFailedError, match=message):
        export_bundle(models.get("digits_mlp"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def further(litert: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(RUNTIMES, str(litert))
    yield litert


def test_a_bundle_that_is_right_everywhere_is_written(turning: ModelSpec, further: Path, tmp_path: Path) -> None:
    bundle = export_bundle(turning, tmp_path)
    name, result = self_test_in(further, bundle.path)
    assert name.startswith("ai-edge-litert") and result.ok


def test_a_bundle_that_is_wrong_in_a_further_runtime_alone_is_not(
    turning: ModelSpec, litert: Path, reverse_at_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the two runtimes' places exchanged: the wrong kernel is the further one's."""
    monkeypatch.setenv(RUNTIMES, sys.executable)
    monkeypatch.setattr(acceptance, "installed_runtimes", lambda: [litert, Path(sys.executable)])
    monkeypatch.setattr(acceptance, "self_test", lambda bundle: self_test_in(litert, bundle.path)[1])
    with pytest.raises(CheckFailedError, match=r"on tflite-runtime 2\.14\.0, .* REVERSE_V2 .* in layer 'turned'"):
        export_bundle(turning, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_further_runtime_that_fails_is_told(
    turning: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho out of order >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv(RUNTIMES, os.fspath(broken))
    with pytest.raises(RuntimeFailedError, match=r"python: the self-test ended with status 3: out of order$"):
        export_bundle(turning, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
