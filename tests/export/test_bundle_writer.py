"""The exported bundle: signatures, operators, files; and what is refused before anything is written."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tflite_runtime.interpreter import Interpreter

import models
from device_runtime.bundle import FILES, INFER_ARTIFACT, MANIFEST, MANIFEST_HASH, TRAIN_ARTIFACT, Bundle, open_bundle
from device_runtime.errors import CheckFailedError, InputError, IntegrityError
from device_runtime.selftest import TOLERANCE, self_test
from device_runtime.weights import dump_weights
from export import bundle_writer
from export.bundle_writer import export_bundle
from export.errors import ExportError
from export.inspection import inspect_bundle
from export.operators import Operators, read_operators
from export.training_graph import TrainingGraph
from models import ModelSpec

SIGNATURES = {
    "anchor": (["unused"], ["count"]),
    "train": (["x", "y", "learning_rate", "proximal"], ["loss"]),
    "evaluate": (["x", "y"], ["loss_sum", "correct", "count"]),
    "infer": (["x"], ["logits"]),
    "reset": (["unused"], ["count"]),
    "write_variable": (["number", "values"], []),
    "read_variable": (["number"], ["values"]),
}


def test_the_signatures_are_those_of_the_design_in_manifest_and_artifact(digits_bundle: Bundle) -> None:
    described = {
        name: ([spec.name for spec in signature.inputs], [spec.name for spec in signature.outputs])
        for name, signature in digits_bundle.manifest.signatures.items()
    }
    assert described == SIGNATURES
    artifact = Interpreter(str(digits_bundle.file(TRAIN_ARTIFACT))).get_signature_list()
    for name, (inputs, outputs) in SIGNATURES.items():
        assert sorted(artifact[name]["inputs"]) == sorted(inputs)
        assert sorted(artifact[name]["outputs"]) == sorted(outputs)


def test_the_manifest_names_and_orders_the_weights(digits_bundle: Bundle) -> None:
    names = [spec.name for spec in digits_bundle.manifest.tensors]
    assert names == ["hidden/kernel", "hidden/bias", "logits/kernel", "logits/bias"]
    want = models.initial_weights(models.get("digits_mlp"), 0)
    for got, expected in zip(digits_bundle.initial_weights(), want, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_all_operators_are_builtins(digits_bundle: Bundle) -> None:
    inspection = inspect_bundle(digits_bundle)
    assert inspection.operators.custom == {}
    assert inspection.operators.flex == inspection.operators.other_custom == 0
    assert inspection.operators.builtin["ASSIGN_VARIABLE"] >= 4
    assert set(inspection.files) == {*FILES, MANIFEST, MANIFEST_HASH}
    assert inspection.files[TRAIN_ARTIFACT] == digits_bundle.file(TRAIN_ARTIFACT).stat().st_size


def test_flex_operators_are_seen(digits_bundle: Bundle) -> None:
    """The proof that none is there rests on a reader that does see them."""

    @tf.function(input_signature=[tf.TensorSpec((2, 2))])
    def determinant(x: Any) -> Any:
        return tf.linalg.det(x)

    converter = tf.lite.TFLiteConverter.from_concrete_functions([determinant.get_concrete_function()])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    operators = read_operators(converter.convert(), "test")
    assert operators.custom == {"FlexMatrixDeterminant": 1}
    assert (operators.flex, operators.other_custom) == (1, 0)


def test_the_frozen_artifact_infers_what_keras_does(digits_bundle: Bundle) -> None:
    golden = digits_bundle.golden()
    runner = Interpreter(str(digits_bundle.file(INFER_ARTIFACT))).get_signature_runner()
    np.testing.assert_allclose(runner(x=golden["x"])["logits"], golden["logits"], rtol=1e-5, atol=1e-5)
    assert runner(x=golden["x"][:3])["logits"].shape == (3, 10)


def test_weights_from_a_file(tmp_path: Path) -> None:
    spec = models.get("digits_mlp")
    weights = models.initial_weights(spec, 5)
    tensors = TrainingGraph(spec, spec.build()).tensors
    (tmp_path / "w.safetensors").write_bytes(dump_weights(weights, tensors))
    bundle = export_bundle(spec, tmp_path, weights_file=tmp_path / "w.safetensors")
    for got, expected in zip(bundle.initial_weights(), weights, strict=True):
        np.testing.assert_array_equal(got, expected)
    with pytest.raises(InputError, match=r"digits_mlp-1\.bundle: exists already"):
        export_bundle(spec, tmp_path)


def test_weights_of_another_model_are_refused(tmp_path: Path, digits_bundle: Bundle) -> None:
    with pytest.raises(IntegrityError, match=r"weights of another model \(missing: hidden_1/bias"):
        export_bundle(models.get("mnist_2nn"), tmp_path, weights_file=digits_bundle.file("weights.safetensors"))
    assert list(tmp_path.iterdir()) == []


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.safetensors: can't read the weights"):
        export_bundle(models.get("digits_mlp"), tmp_path, weights_file=tmp_path / "absent.safetensors")


def test_weights_that_are_not_finite_are_named(tmp_path: Path, digits_bundle: Bundle) -> None:
    first, *rest = digits_bundle.initial_weights()
    path = tmp_path / "w.safetensors"
    path.write_bytes(dump_weights((first * np.float32(np.nan), *rest), digits_bundle.manifest.tensors))
    with pytest.raises(InputError) as caught:
        export_bundle(models.get("digits_mlp"), tmp_path / "out", weights_file=path)
    assert str(caught.value) == f"{path}: tensor 'hidden/kernel' holds values that are not finite"


def test_a_name_that_no_folder_can_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"can't write it: File name too long; change --out or --bundle-version$"):
        export_bundle(models.get("digits_mlp"), tmp_path, version=10**300)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(InputError) as caught:
        patch.setattr(Path, "write_bytes", full)
        export_bundle(models.get("digits_mlp"), tmp_path)
    target = tmp_path / "digits_mlp-1.bundle"
    assert str(caught.value) == f"{target}: can't write it: No space left on device; change --out"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\x1c\0\0\0TFL3" + bytes(9), b"\xff" * 64, b"no model" * 9])
def test_a_file_that_is_no_artifact_is_named(data: bytes) -> None:
    with pytest.raises(IntegrityError) as caught:
        read_operators(data, "train.tflite")
    assert str(caught.value) == "train.tflite: not a TFLite file, or damaged; export the bundle again"


def test_a_damaged_artifact_is_read_or_refused(digits_bundle: Bundle) -> None:
    artifact = digits_bundle.file(TRAIN_ARTIFACT).read_bytes()
    rng = np.random.default_rng(0)
    for length in rng.integers(0, len(artifact), 50):
        with suppress(IntegrityError):
            read_operators(artifact[:length], "t")
    for position in rng.integers(0, len(artifact), 200):
        with suppress(IntegrityError):
            read_operators(artifact[:position] + bytes([rng.integers(256)]) + artifact[position + 1 :], "t")


def test_golden_values_keep_away_from_kinks(tmp_path: Path) -> None:
    """With the first batch that comes, these weights once met a kink: the interpreter was right, and refused."""
    bundle = export_bundle(models.get("mnist_cnn"), tmp_path, seed=3)
    assert self_test(bundle).max_rel < TOLERANCE / 5


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: can't write there"):
        export_bundle(models.get("digits_mlp"), tmp_path / "file")


def test_the_same_seed_exports_the_same_weights_and_golden_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    first, second = (export_bundle(models.get("digits_mlp"), tmp_path / name) for name in "ab")
    same = ("weights.safetensors", "golden.npz")
    assert {name: first.manifest.files[name] for name in same} == {name: second.manifest.files[name] for name in same}
    assert first.manifest.created["at"] == "2023-11-14T22:13:20+00:00"


def _spec_of(name: str, *layers: Any) -> ModelSpec:
    return replace(
        models.get("digits_mlp"),
        name=name,
        build=lambda: tf.keras.Sequential([tf.keras.layers.Input((8, 8, 1)), *layers]),
    )


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            lambda k: [k.Conv2D(4, 1, data_format="channels_first", name="turned"), k.Flatten(), k.Dense(10)],
            "layer 'turned': operator Conv2D with channels first can't be trained on a device; use data_format=",
        ),
        (
            lambda k: [
                k.Flatten(),
                k.Dense(9),
                k.Lambda(lambda x: tf.math.cumsum(x, axis=1), name="running"),
                k.Dense(10),
            ],
            "layer 'running': no builtin gradient for the operator Cumsum; multiply with a triangular matrix",
        ),
        (
            lambda k: [k.Flatten(), k.GaussianNoise(0.1, name="noise"), k.Dense(10)],
            "layer 'noise': GaussianNoise draws random numbers that a device can't repeat",
        ),
        (
            lambda k: [k.Reshape((8, 8)), k.LSTM(4, dropout=0.5, name="memory"), k.Dense(10)],
            "layer 'memory': LSTM draws random numbers",
        ),
        (
            lambda k: [k.Reshape((8, 8)), k.Masking(), k.GRU(4, name="memory"), k.Dense(10)],
            "layer 'memory': a mask can't be trained on a device; set mask_zero=False, pad instead",
        ),
    ],
)
def test_what_is_not_supported_is_named_before_the_conversion(
    layers: Callable[[Any], list[Any]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=f"^{re.escape(message)}") as caught:
        export_bundle(_spec_of("unsupported", *layers(tf.keras.layers)), tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_has_no_builtin_is_named_by_the_converter(tmp_path: Path) -> None:
    """Before the first weight no gradient is asked for, so that it is the converter's to refuse."""
    keras = tf.keras.layers
    spec = _spec_of("odd", keras.Lambda(tf.math.lgamma), keras.Flatten(), keras.Dense(10))
    with pytest.raises(ExportError, match=r"^the model can't be converted to TFLite builtins: .*Lgamma"):
        export_bundle(spec, tmp_path)


def test_operators_that_are_no_builtins_never_reach_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_writer, "read_operators", lambda data, where: Operators({}, {"FlexErf": 1, "Mine": 2}))
    with pytest.raises(ExportError, match=r"^train\.tflite: operators that are no TFLite builtins: FlexErf, Mine$"):
        export_bundle(models.get("digits_mlp"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_gradient_never_reaches_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, negated_bias_add: None
) -> None:
    with pytest.raises(CheckFailedError, match=r"does not compute what Keras does: .*/bias differs by .*nothing was"):
        export_bundle(models.get("digits_mlp"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_installed_whole(digits_bundle: Bundle) -> None:
    assert open_bundle(digits_bundle.path.parent).identity == digits_bundle.identity
    assert [path.name for path in digits_bundle.path.parent.iterdir()] == [digits_bundle.path.name]
