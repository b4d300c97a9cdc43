"""From bytes to an update: each reason to refuse one, and the words that come with it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_server.validation import largest_update, validated_update
from device_runtime import codec
from device_runtime.bundle import Bundle
from device_runtime.errors import UpdateError
from device_runtime.tensors import TensorSpec
from device_runtime.update import ClientUpdate

MakeReport = Callable[..., bytes]
MakeUpdate = Callable[..., ClientUpdate]


def sealed(content: bytes) -> bytes:
    """Content with the checksum that belongs to it."""
    return content + struct.pack("<I", zlib.crc32(content))


def refusal(body: bytes, bundle: Bundle) -> tuple[str, str]:
    with pytest.raises(UpdateError) as caught:
        validated_update(body, bundle.manifest, 1)
    return caught.value.reason, str(caught.value)


def test_a_valid_update_comes_through_unchanged(
    bundle: Bundle, make_update: MakeUpdate, make_report: MakeReport
) -> None:
    update = validated_update(make_report(value=0.25, weight=7), bundle.manifest, 1)
    expected = make_update(value=0.25, weight=7)
    header = update.header
    assert (header.weight, header.round_number, header.metrics) == (7, 1, {"loss": 0.5})
    for tensor, wanted in zip(codec.shaped(update.values(), bundle.manifest.tensors), expected.delta, strict=True):
        np.testing.assert_array_equal(tensor, wanted)


def test_truncated(bundle: Bundle) -> None:
    assert refusal(b"PFUD", bundle) == ("truncated", "update of 4 bytes: shorter than its header")


def test_format(bundle: Bundle, make_report: MakeReport) -> None:
    body = sealed(b"NOPE" + make_report()[4:-4])
    assert refusal(body, bundle) == ("format", "update: not an encoded update of format 2")


def test_another_model(bundle: Bundle, make_update: MakeUpdate) -> None:
    body = codec.encode(make_update(), bundle.manifest.tensors, "ab" * 16, "f32", 0)
    expected = f"update: made for the model {'ab' * 8}…, expected {bundle.manifest.model_id[:16]}…"
    assert refusal(body, bundle) == ("model", expected)


def test_wrong_number_of_tensors(bundle: Bundle) -> None:
    spec = TensorSpec("kernel", (3, 2))
    update = ClientUpdate((np.ones((3, 2), np.float32),), 1, 1)
    body = codec.encode(update, [spec], bundle.manifest.model_id, "f32", 0)
    assert refusal(body, bundle) == ("shape", "update: 24 bytes of values, expected 32 for this model")


def test_wrong_shape(bundle: Bundle) -> None:
    specs = [TensorSpec("kernel", (3, 3)), TensorSpec("bias", (2,))]
    update = ClientUpdate((np.ones((3, 3), np.float32), np.ones(2, np.float32)), 1, 1)
    body = codec.encode(update, specs, bundle.manifest.model_id, "f32", 0)
    assert refusal(body, bundle) == ("shape", "update: 44 bytes of values, expected 32 for this model")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_delta_that_is_not_finite(bundle: Bundle, make_report: MakeReport, value: float) -> None:
    body = sealed(make_report()[:-8] + struct.pack("<f", value))
    assert refusal(body, bundle) == ("non_finite", "update: holds values that are not finite")


def test_a_metric_that_is_not_finite(bundle: Bundle, make_report: MakeReport) -> None:
    assert refusal(make_report(loss=np.nan), bundle) == ("non_finite", "update: the metric 'loss' is not finite")


def test_weight(bundle: Bundle, make_report: MakeReport) -> None:
    expected = "update: its weight should be at least 1 example, not 0"
    assert refusal(make_report(weight=0), bundle) == ("weight", expected)


def test_wrong_round(bundle: Bundle, make_report: MakeReport) -> None:
    assert refusal(make_report(round_number=2), bundle) == ("wrong_round", "update: made in round 2, expected 1")


@given(position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_any_flipped_byte_is_noticed(bundle: Bundle, make_report: MakeReport, position: int, flip: int) -> None:
    body = bytearray(make_report())
    body[position % len(body)] ^= flip
    assert refusal(bytes(body), bundle) == ("checksum", "update: the checksum does not match the content")


@given(body=st.binary(max_size=200))
def test_any_bytes_are_refused_and_never_more(bundle: Bundle, body: bytes) -> None:
    assert refusal(body, bundle)[0] in {"truncated", "checksum"}


@given(body=st.binary(max_size=200))
def test_any_bytes_with_a_right_checksum_give_an_update_or_a_refusal(
    bundle: Bundle, make_report: MakeReport, body: bytes
) -> None:
    header = make_report()[:24]
    try:
        update = validated_update(sealed(header + body), bundle.manifest, 1)
    except UpdateError as error:
        assert error.reason in {"truncated", "format", "shape", "wrong_round", "weight", "non_finite"}
    else:
        assert update.header.weight >= 1
        assert np.isfinite(update.values()).all()


def test_largest_update_is_the_length_of_the_longest_one_that_is_valid(bundle: Bundle, make_update: MakeUpdate) -> None:
    specs = bundle.manifest.tensors
    metrics = {f"{index:x>255}": 1.0 for index in range(codec.MAX_METRICS)}
    lengths = []
    for name in codec.CODECS:
        body = codec.encode(replace(make_update(), metrics=metrics), specs, bundle.manifest.model_id, name, 0)
        validated_update(body, bundle.manifest, 1)
        lengths.append(len(body))
    assert max(lengths) == largest_update(specs)
