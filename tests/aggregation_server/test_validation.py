"""From bytes to an update: each reason to refuse one, and the words that come with it."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregation_server.aggregation.validation import (
    UNBOUNDED,
    Bounds,
    largest_update,
    norm_of,
    validated_evaluation,
    validated_update,
)
from device_runtime import codec
from device_runtime.bundle import Bundle
from device_runtime.errors import InputError, UpdateError
from device_runtime.messages import EvaluationReport
from device_runtime.tensors import TensorSpec
from device_runtime.update import ClientUpdate

MakeReport = Callable[..., bytes]
MakeUpdate = Callable[..., ClientUpdate]


def sealed(content: bytes) -> bytes:
    """Content with the checksum that belongs to it."""
    return content + struct.pack("<I", zlib.crc32(content))


def refusal(body: bytes, bundle: Bundle, bounds: Bounds = UNBOUNDED) -> tuple[str, str]:
    with pytest.raises(UpdateError) as caught:
        validated_update(body, bundle.manifest, 1, bounds)
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


def test_a_weight_above_the_bound(bundle: Bundle, make_report: MakeReport) -> None:
    bounds = Bounds(examples=600)
    validated_update(make_report(weight=600), bundle.manifest, 1, bounds)
    expected = "update: its weight should be at most 600, not 601"
    assert refusal(make_report(weight=601), bundle, bounds) == ("weight", expected)


@pytest.mark.parametrize("name", codec.CODECS)
def test_a_norm_above_the_bound(bundle: Bundle, make_update: MakeUpdate, name: str) -> None:
    body = codec.encode(make_update(value=3.0), bundle.manifest.tensors, bundle.manifest.model_id, name, 0)
    norm = norm_of(validated_update(body, bundle.manifest, 1))
    validated_update(body, bundle.manifest, 1, Bounds(norm=norm))
    expected = f"update: its norm should be at most {0.99 * norm:g}, not {norm:g}"
    assert refusal(body, bundle, Bounds(norm=0.99 * norm)) == ("norm", expected)


def test_a_norm_is_not_looked_at_where_the_values_are_not_finite(bundle: Bundle, make_report: MakeReport) -> None:
    body = sealed(make_report()[:-8] + struct.pack("<f", np.nan))
    assert refusal(body, bundle, Bounds(norm=1.0))[0] == "non_finite"


@pytest.mark.parametrize("name", codec.CODECS)
@given(size=st.integers(1, 70_000), seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-12, 1.0, 1e15]))
@settings(max_examples=15)
def test_the_norm_is_that_of_the_decoded_values(name: str, size: int, seed: int, scale: float) -> None:
    specs = (TensorSpec("t", (size,)),)
    values = (scale * np.random.default_rng(seed).normal(size=size)).astype(np.float32)
    body = codec.encode(ClientUpdate((values,), 1, seed), specs, "ab" * 16, name, seed)
    update = codec.read_update(body, specs, "ab" * 16)
    assert norm_of(update) == pytest.approx(float(np.linalg.norm(update.values().astype(np.float64))), rel=1e-5)


def test_the_norm_of_the_largest_values_is_a_number() -> None:
    specs = (TensorSpec("t", (1000,)),)
    body = codec.encode(ClientUpdate((np.full(1000, 3e38, np.float32),), 1, 1), specs, "ab" * 16, "f32", 0)
    assert norm_of(codec.read_update(body, specs, "ab" * 16)) == pytest.approx(3e38 * 1000**0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": 0.0}, "--max-update-norm should be a finite number above 0, not 0.0"),
        ({"norm": np.inf}, "--max-update-norm should be a finite number above 0, not inf"),
        ({"norm": True}, "--max-update-norm should be a finite number above 0, not True"),
        ({"examples": 0}, "--max-examples should be a whole number from 1 to 2147483647, not 0"),
        ({"examples": 2**31}, "--max-examples should be a whole number from 1 to 2147483647, not 2147483648"),
        ({"examples": 1.5}, "--max-examples should be a whole number from 1 to 2147483647, not 1.5"),
    ],
)
def test_bounds_out_of_range_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Bounds(**fields)  # type: ignore[arg-type]
    assert str(caught.value) == message


EVALUATION = {"round_number": 3, "count": 10, "correct": 7, "loss_sum": 4.5}


def evaluation_refusal(body: bytes, metric: str = "accuracy") -> tuple[str, str]:
    with pytest.raises(UpdateError) as caught:
        validated_evaluation(body, metric, 3, 1000)
    return caught.value.reason, str(caught.value)


def test_a_valid_evaluation_comes_through_unchanged() -> None:
    report = EvaluationReport(3, 10, 7.5, 4.25)
    assert validated_evaluation(json.dumps(report.to_json()).encode(), "accuracy", 3, 10) == report
    later = EVALUATION | {"what a later device says": [1]}
    assert validated_evaluation(json.dumps(later).encode(), "accuracy", 3, 10) == EvaluationReport(3, 10, 7.0, 4.5)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", ("format", "evaluation: not JSON")),
        (b"\xff\xfe", ("format", "evaluation: not JSON")),
        (b"[" * 100_000, ("format", "evaluation: not JSON")),
        (b"9" * 100_000, ("format", "evaluation: not JSON")),
        (b"[]", ("format", "evaluation: not a JSON object")),
        (b"{}", ("format", "evaluation: round_number should be a whole number")),
        ({"round_number": "3"}, ("format", "evaluation: round_number should be a whole number")),
        ({"count": 10.0}, ("format", "evaluation: count should be a whole number")),
        ({"count": True}, ("format", "evaluation: count should be a whole number")),
        ({"count": 2**63}, ("format", "evaluation: count should be a whole number")),
        ({"correct": None}, ("format", "evaluation: correct should be a number")),
        ({"loss_sum": False}, ("format", "evaluation: loss_sum should be a number")),
        ({"round_number": 4}, ("wrong_round", "evaluation: made in round 4, expected 3")),
        ({"count": 0}, ("weight", "evaluation: count should be from 1 to 1000, not 0")),
        ({"count": 1001}, ("weight", "evaluation: count should be from 1 to 1000, not 1001")),
        ({"correct": float("nan")}, ("non_finite", "evaluation: correct and loss_sum should be finite numbers")),
        ({"loss_sum": float("-inf")}, ("non_finite", "evaluation: correct and loss_sum should be finite numbers")),
        ({"loss_sum": 10**400}, ("non_finite", "evaluation: correct and loss_sum should be finite numbers")),
        ({"correct": -0.5}, ("format", "evaluation: correct should be from 0 to count, 10, not -0.5")),
        ({"correct": 10.5}, ("format", "evaluation: correct should be from 0 to count, 10, not 10.5")),
    ],
    ids=lambda case: str(case)[:20],
)
def test_an_evaluation_that_is_refused(body: bytes | dict[str, object], expected: tuple[str, str]) -> None:
    data = body if isinstance(body, bytes) else json.dumps(EVALUATION | body).encode()
    assert evaluation_refusal(data) == expected


def test_an_error_s_sum_may_be_larger_than_the_count() -> None:
    report = EvaluationReport(3, 10, 73.5, 4.25)
    assert validated_evaluation(json.dumps(report.to_json()).encode(), "mean_absolute_error", 3, 10) == report
    body = json.dumps(EVALUATION | {"correct": -0.5}).encode()
    message = "evaluation: correct should be at least 0, not -0.5"
    assert evaluation_refusal(body, "mean_absolute_error") == ("format", message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(fields=st.fixed_dictionaries({}, optional=dict.fromkeys(EVALUATION, JSON)), raw=st.binary(max_size=40))
def test_any_fields_and_any_bytes_are_an_evaluation_or_refused(fields: dict[str, object], raw: bytes) -> None:
    for body in (json.dumps(EVALUATION | fields).encode(), json.dumps(fields).encode(), raw):
        try:
            report = validated_evaluation(body, "accuracy", 3, 1000)
        except UpdateError as error:
            assert error.reason in {"format", "wrong_round", "weight", "non_finite"}
        else:
            assert 1 <= report.count <= 1000 and 0 <= report.correct <= report.count
            assert np.isfinite(report.loss_sum)


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
