"""`pocketfed export`, `inspect` and `parity` on the digits' bundle, whole and tampered with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import models
from cli.bundles import print_parity
from cli.main import main
from device_runtime.bundle import TRAIN_ARTIFACT, Bundle, open_bundle
from device_runtime.weights import dump_weights
from export.convert import training_artifact
from export.inference import InferenceReport
from export.parity import Difference, ParityReport
from export.training_graph import TrainingGraph

pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")


def test_inspect_in_json(digits_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(digits_bundle.path), "--json"]) == 0
    output = capsys.readouterr()
    inspection = json.loads(output.out)
    assert set(inspection) >= {"parameters", "operators", "flex", "custom", "files"}
    assert inspection["parameters"] == 4810
    assert inspection["examples"] == {"x": "float32[n, 8, 8, 1]", "y": "int32[n]"}
    assert (inspection["flex"], inspection["custom"]) == (0, 0)
    assert inspection["operators"]["BATCH_MATMUL"] > 0
    assert all(isinstance(count, int) and count > 0 for count in inspection["operators"].values())
    assert not [name for name in inspection["operators"] if name.startswith("Flex")]
    for name in ("manifest.json", "train.tflite", "infer.tflite", "weights.safetensors", "golden.npz"):
        assert inspection["files"][name] == (digits_bundle.path / name).stat().st_size


def test_inspect_in_words(digits_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(digits_bundle.path.parent)]) == 0  # the folder that holds exactly one
    output = capsys.readouterr().out
    assert f"digits_mlp version 1, 4,810 parameters, identity {digits_bundle.identity}" in output
    assert "hidden/kernel" in output
    assert "float32[n, 8, 8, 1]" in output
    assert "BATCH_MATMUL" in output
    assert "Flex operators: 0; other custom operators: 0" in output


def test_profile_in_json(digits_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(digits_bundle.path), "--profile", "--batch-size", "5", "--json"]) == 0
    output = capsys.readouterr()
    inspection = json.loads(output.out)
    assert inspection["parameters"] == 4810
    profile = inspection["profile"]
    assert (profile["batch_size"], profile["threads"]) == (5, 1)
    assert profile["sum_ms"] == pytest.approx(sum(one["total_ms"] for one in profile["operators"]))
    assert output.err.splitlines()[-1].startswith("profiling 100/100")


def test_profile_in_words(
    digits_bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["inspect", str(digits_bundle.path), "--profile"]) == 0
    output = capsys.readouterr().out
    assert "a step of 10 examples, 1 threads" in output
    assert "the whole step" in output and "100.0%" in output
    assert "64×64 64×10" in output or "10×64 64×64" in output
    assert "ASSIGN_VARIABLE" in output.splitlines()[-1]


def test_parity_in_json(digits_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", str(digits_bundle.path), "--json"]) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert set(report) >= {"ok", "steps", "max_abs", "max_rel", "tensor", "step"}
    assert (report["ok"], report["steps"], report["tensor"], report["step"]) == (True, 60, None, None)
    assert 0 <= report["max_rel"] <= 1e-4
    assert [line.split()[:2] for line in output.err.splitlines()] == [
        ["comparing", f"{n}/60"] for n in range(10, 61, 10)
    ]


def test_export_of_weights_from_a_file_in_json(
    digits_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = models.initial_weights(models.get("digits_mlp"), 77)
    path = tmp_path / "w.safetensors"
    path.write_bytes(dump_weights(weights, digits_bundle.manifest.tensors))
    arguments = ["digits_mlp", "--weights", str(path), "--bundle-version", "3", "--out", str(tmp_path), "--json"]
    assert main(["export", *arguments]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    made = json.loads(output.out)
    bundle = open_bundle(tmp_path / "digits_mlp-3.bundle")
    assert made == {"bundle": str(bundle.path), "identity": bundle.identity, "parameters": 4810}
    for got, want in zip(bundle.initial_weights(), weights, strict=True):
        np.testing.assert_array_equal(got, want)


def test_export_in_words_with_a_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "digits_mlp", "--seed", "9", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr()
    bundle = open_bundle(tmp_path)
    assert output.out == f"{bundle.path}: 4,810 parameters, identity {bundle.identity[:16]}…\n"
    assert output.err == ""
    for got, want in zip(bundle.initial_weights(), models.initial_weights(models.get("digits_mlp"), 9), strict=True):
        np.testing.assert_array_equal(got, want)


class _Tampered(TrainingGraph):
    """Steps that go up the gradient of every weight, or nowhere at all."""

    factor = -1.0

    def _train(self, x: tf.Tensor, y: tf.Tensor, learning_rate: tf.Tensor, proximal: tf.Tensor) -> dict[str, tf.Tensor]:
        return super()._train(x, y, self.factor * learning_rate, proximal)


@pytest.fixture
def tampered(digits_bundle: Bundle, digits_copy: Path, rehash: Callable[..., Bundle]) -> Callable[[float], Path]:
    """`tampered(factor)`: a bundle whose hashes are right, and whose steps are `factor` times as long."""

    def make(factor: float) -> Path:
        spec = models.get("digits_mlp")
        graph = _Tampered(spec, spec.build())
        graph.factor = factor
        for variable, value in zip(graph.weights, digits_bundle.initial_weights(), strict=True):
            variable.assign(value)
        (digits_copy / TRAIN_ARTIFACT).write_bytes(training_artifact(graph.functions()))
        return rehash(digits_copy).path

    return make


def test_parity_of_a_tampered_bundle_in_json(
    tampered: Callable[[float], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["parity", str(tampered(-1.0)), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["tensor"], report["step"], report["steps"]) == (False, "hidden/kernel", 1, 1)
    assert report["max_rel"] > 1e-3


def test_parity_of_a_tampered_bundle_in_words(
    tampered: Callable[[float], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["parity", str(tampered(-1.0))]) == 1
    assert capsys.readouterr().out.endswith("parity FAILS: hidden/kernel (layer hidden) differs first, at step 1\n")


def test_parity_of_a_bundle_that_computes_no_numbers_is_still_json(
    tampered: Callable[[float], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert main(["parity", str(tampered(float("nan"))), "--json"]) == 1
    report = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert (report["ok"], report["max_abs"], report["max_rel"], report["step"]) == (False, None, None, 1)


def test_parity_says_where_it_met_a_kink(digits_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    inference = InferenceReport("int8", 256, True, 0.02, "accuracy", 0.75, 0.74)
    print_parity(ParityReport(60, (Difference("loss", 1e-6, 1e-6),), None, None, (7, 30), inference))
    told = capsys.readouterr().out
    assert "kinks crossed, and the step's update confirmed, at steps 7, 30\n" in told
    assert "infer.tflite (int8), 256 synthetic examples: accuracy 0.7400, Keras 0.7500; logits differ by" in told
    assert told.endswith("parity holds: largest relative difference 1.0e-06, tolerance 1e-04\n")


@pytest.mark.parametrize("command", ["inspect", "parity"])
def test_an_artifact_that_is_none(
    command: str, digits_copy: Path, rehash: Callable[..., Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    (digits_copy / TRAIN_ARTIFACT).write_bytes(b"")
    rehash(digits_copy)
    assert main([command, str(digits_copy)]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pocketfed: {digits_copy / TRAIN_ARTIFACT}: ")
