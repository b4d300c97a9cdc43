"""The golden self-test: passes on what Keras computed, and on nothing else."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from device_runtime import interpreter
from device_runtime.bundle import GOLDEN, WEIGHTS, Bundle
from device_runtime.cli import main
from device_runtime.errors import IntegrityError
from device_runtime.selftest import TOLERANCE, loss_difference, relative_difference, self_test
from device_runtime.weights import dump_weights


def test_a_bundle_passes(digits_bundle: Bundle) -> None:
    for threads in (1, 2):
        result = self_test(digits_bundle, threads)
        assert result.ok
        assert 0 <= result.max_rel <= TOLERANCE


def change_golden(path: Path, name: str, change: Callable[[Any], Any]) -> None:
    with np.load(path / GOLDEN, allow_pickle=False) as arrays:
        fields = dict(arrays)
    fields[name] = change(fields[name])
    np.savez(path / GOLDEN, **fields)


@pytest.mark.parametrize("name", ["w0", "w1", "w2", "w3", "logits", "losses"])
def test_other_golden_values_fail(
    digits_copy: Path, rehash: Callable[..., Bundle], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change_golden(digits_copy, name, lambda values: values + np.float32(2e-3) * np.abs(values).max())
    bundle = rehash(digits_copy)
    assert main(["selftest", str(digits_copy)]) == 1
    captured = capsys.readouterr()
    tensors = [spec.name for spec in bundle.manifest.tensors]
    named = {"logits": "logits", "losses": "loss"}.get(name) or tensors[int(name[1:])]
    assert captured.out.startswith(f"self-test FAILED on {interpreter.runtime_version()}: largest relative difference")
    assert f"({named})" in captured.out
    assert captured.err == ""


def test_other_initial_weights_fail(digits_copy: Path, rehash: Callable[..., Bundle]) -> None:
    bundle = rehash(digits_copy)
    weights = bundle.initial_weights()
    data = dump_weights((weights[0] * np.float32(1.01), *weights[1:]), bundle.manifest.tensors)
    (digits_copy / WEIGHTS).write_bytes(data)
    rehash(digits_copy)
    assert main(["selftest", str(digits_copy)]) == 1


def test_values_that_are_not_finite_fail(digits_copy: Path, rehash: Callable[..., Bundle]) -> None:
    change_golden(digits_copy, "x", lambda values: values * np.float32(np.nan))
    result = self_test(rehash(digits_copy))
    assert not result.ok
    assert result.max_rel == np.inf


def test_golden_values_that_can_not_be_read(
    digits_copy: Path, rehash: Callable[..., Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    (digits_copy / GOLDEN).write_bytes(b"PK\x03\x04 no archive")
    rehash(digits_copy)
    assert main(["selftest", str(digits_copy)]) == 4
    message = f"{digits_copy / GOLDEN}: not a .npz file of golden values; export the bundle again"
    assert capsys.readouterr().err == f"pocketfed-device: {message}\n"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("x", lambda x: x[:, :3]),
        ("y", lambda y: y.astype(np.float32)),
        ("logits", lambda logits: logits[:, :3]),
        ("steps", lambda steps: np.array("many")),
    ],
)
def test_golden_values_of_another_model(
    digits_copy: Path,
    rehash: Callable[..., Bundle],
    name: str,
    change: Callable[[Any], Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    change_golden(digits_copy, name, change)
    rehash(digits_copy)
    assert main(["selftest", str(digits_copy)]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pocketfed-device: {digits_copy / GOLDEN}: not the golden values of this model: ")


def test_golden_values_that_are_not_there(digits_copy: Path, rehash: Callable[..., Bundle]) -> None:
    with np.load(digits_copy / GOLDEN, allow_pickle=False) as arrays:
        fields = dict(arrays)
    del fields["w2"]
    np.savez(digits_copy / GOLDEN, **fields)
    with pytest.raises(IntegrityError, match=r"not the golden values of this model: .*w2"):
        self_test(rehash(digits_copy))


@pytest.mark.parametrize(
    ("got", "want", "difference"),
    [([1.0, 2.0], [1.0, 4.0], 0.5), ([-3.0], [-4.0], 0.25), ([0.5], [0.0], 0.5), ([0.0], [0.0], 0.0)],
)
def test_differences_are_relative_to_the_largest_value(got: object, want: object, difference: float) -> None:
    assert relative_difference(got, want) == difference


@pytest.mark.parametrize(
    ("got", "want", "difference"),
    [([4.0], [2.0], 1.0), ([0.25], [0.125], 0.125), ([3.0, 0.5], [4.0, 0.0], 0.25), ([0.0], [0.0], 0.0)],
)
def test_differences_of_losses_are_relative_to_one_at_least(got: object, want: object, difference: float) -> None:
    assert loss_difference(got, want) == difference


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_infinitely_different(value: float) -> None:
    with np.errstate(invalid="ignore"):
        assert relative_difference([1.0, value], [1.0, 1.0]) == np.inf
        assert relative_difference([1.0, 1.0], [1.0, value]) == np.inf


def test_the_runtime_is_named_with_its_version() -> None:
    name, version = interpreter.runtime_version().split()
    assert version == metadata.version(name)


def test_without_tflite_runtime_its_successor_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    successor = ModuleType("ai_edge_litert.interpreter")
    successor.Interpreter = lambda **options: options  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", ModuleType("ai_edge_litert"))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", successor)
    monkeypatch.setattr(metadata, "version", lambda name: {"ai-edge-litert": "2.1"}[name])
    spec = importlib.util.spec_from_file_location("another_interpreter", interpreter.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.runtime_version() == "ai-edge-litert 2.1"
    assert module.open_interpreter("m.tflite", 2) == {"model_path": "m.tflite", "num_threads": 2}


def test_the_command_can_answer_in_json(digits_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", str(digits_bundle.path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True and report["max_rel"] < report["tolerance"] == TOLERANCE
    assert report["runtime"].startswith("tflite-runtime ") and report["tensor"]
