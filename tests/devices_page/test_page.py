"""docs/devices.md against the manifest of an exported bundle, and against what else it repeats."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from device_runtime.batching import epoch_order
from device_runtime.bundle import Bundle, Signature
from device_runtime.codec import encode
from device_runtime.tensors import TensorSpec
from device_runtime.update import ClientUpdate
from device_runtime.work import step_seeds

PAGE = (Path(__file__).parents[2] / "docs" / "devices.md").read_text(encoding="utf-8")
SPEC = re.compile(r"`(\w+)` (float32|int32) \[(.*?)\]")
CALL = re.compile(r'runSignature\(\s*mapOf\((.*?)\),\s*mapOf\((.*?)\), "(\w+)"\s*\)', re.DOTALL)


def _specs(cell: str) -> tuple[TensorSpec, ...]:
    def shape(text: str) -> tuple[int | None, ...]:
        return tuple(None if size == "n" else int(size) for size in text.split(", ") if size)

    return tuple(TensorSpec(name, shape(sizes), dtype) for name, dtype, sizes in SPEC.findall(cell))


def _table() -> dict[str, Signature]:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|(.*)\|$", PAGE, re.MULTILINE)
    return {name: Signature(_specs(inputs), _specs(outputs)) for name, inputs, outputs in rows}


@pytest.fixture(scope="module")
def dropout_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow 2.14 uses what its dependencies have deprecated since
        from dataclasses import replace

        import tensorflow as tf

        import models
        from export.bundle_writer import export_bundle

        def build() -> tf.keras.Model:
            inputs = tf.keras.Input((8, 8, 1))
            hidden = tf.keras.layers.Dropout(0.5)(tf.keras.layers.Flatten()(inputs))
            return tf.keras.Model(inputs, tf.keras.layers.Dense(10, name="logits")(hidden))

        return export_bundle(replace(models.get("digits_mlp"), build=build), tmp_path_factory.mktemp("d"), seed=0)


def test_the_table_is_the_manifest_s(digits_bundle: Bundle) -> None:
    assert _table() == digits_bundle.manifest.signatures


def test_a_model_with_dropout_has_one_more_input(dropout_bundle: Bundle) -> None:
    (sentence,) = re.findall(r"A model with dropout has one more input of `train`: (.*?)\.\n", PAGE)
    expected = _table()
    expected["train"] = Signature((*expected["train"].inputs, *_specs(sentence)), expected["train"].outputs)
    assert dropout_bundle.manifest.signatures == expected


def test_the_kotlin_calls_every_signature_with_all_of_its_inputs(digits_bundle: Bundle) -> None:
    signatures = digits_bundle.manifest.signatures
    calls = CALL.findall(PAGE)
    assert len(calls) == PAGE.count("runSignature(")
    assert {name for _, _, name in calls} == set(signatures)
    for inputs, outputs, name in calls:
        assert re.findall(r'"(\w+)" to', inputs) == [spec.name for spec in signatures[name].inputs]
        assert re.findall(r'"(\w+)" to', outputs) == [spec.name for spec in signatures[name].outputs]


def test_the_orders_and_seeds_that_it_gives_are_the_protocol_s() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| ([\d, ]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 2
    for examples, seed, epoch, order in rows:
        assert epoch_order(int(examples), int(seed), int(epoch)).tolist() == [int(i) for i in order.split(", ")]
    ((seed, seeds),) = re.findall(r"^\| (\d+) \| ([\d, ]+) \|$", PAGE, re.MULTILINE)
    assert step_seeds(int(seed), 3).tolist() == [int(i) for i in seeds.split(", ")]


def test_the_constants_of_philox_are_those_in_their_comments() -> None:
    constants = re.findall(r"const val \w+ = -0x([0-9A-F]+)L  // 0x([0-9A-F]+)", PAGE)
    assert len(constants) == 4
    assert all(int(negative, 16) + int(word, 16) == 2**64 for negative, word in constants)


def test_the_header_of_an_update_is_the_codec_s() -> None:
    (version, codec, metrics) = re.findall(r'put\("PFUD".*?putShort\((\d+)\)\.put\((\d+)\)\.put\((\d+)\)', PAGE)[0]
    update = ClientUpdate((np.zeros(1, np.float32),), 1, 1, {"loss": 0.5})
    data = encode(update, (TensorSpec("w", (1,)),), "0" * 32, "f32", 0)
    assert data[:8] == b"PFUD" + int(version).to_bytes(2, "little") + bytes([int(codec), int(metrics)])
