"""What stands around an update's values: sizes, fields, every reason to refuse bytes, and any bytes at all."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import codec
from device_runtime.errors import InputError, IntegrityError, UpdateError
from device_runtime.tensors import TensorSpec
from device_runtime.update import ClientUpdate

MODEL = "0123456789abcdef" * 2
SPECS = (TensorSpec("kernel", (3, 2)), TensorSpec("bias", (1,)))
REASONS = {"truncated", "checksum", "format", "model", "shape"}


def small_update(**fields: Any) -> ClientUpdate:
    delta = (np.arange(6, dtype=np.float32).reshape(3, 2), np.array([-7], np.float32))
    return ClientUpdate(**({"delta": delta, "weight": 5, "round_number": 3, "metrics": {"loss": 0.25}} | fields))  # type: ignore[arg-type]


def encoded(name: str = "f32", seed: int = 0, **fields: Any) -> bytes:
    return codec.encode(small_update(**fields), SPECS, MODEL, name, seed)


def sealed(content: bytes) -> bytes:
    """Content with the checksum that belongs to it."""
    return content + struct.pack("<I", zlib.crc32(content))


def refusal(data: bytes, model: str = MODEL) -> tuple[str, str]:
    with pytest.raises(UpdateError) as caught:
        codec.decode(data, SPECS, model)
    return caught.value.reason, str(caught.value)


@pytest.mark.parametrize("name", codec.CODECS)
def test_what_comes_with_the_delta_comes_back(name: str) -> None:
    metrics = {"loss": 0.1, "größe": -1e300, "": float("inf")}
    update = small_update(weight=2**64 - 1, round_number=2**32 - 1, metrics=metrics)
    data = codec.encode(update, SPECS, MODEL, name, 0)
    assert len(data) == codec.encoded_size(SPECS, name, tuple(metrics))
    back = codec.decode(data, SPECS, MODEL)
    assert (back.weight, back.round_number, back.metrics) == (2**64 - 1, 2**32 - 1, metrics)
    assert [(tensor.shape, str(tensor.dtype)) for tensor in back.delta] == [((3, 2), "float32"), ((1,), "float32")]


def test_the_sizes_are_those_of_the_format() -> None:
    around = 4 + 2 + 1 + 1 + 8 + 4 + 8 + 8 + 4  # header and checksum
    metric = 1 + len("loss") + 8
    size = 65536 + 33  # a chunk of 2048 blocks, and one of two
    levels = 2 * 2 + 2050 // 2
    expected = {
        "f32": 4 * size,
        "f16": 2 * size + 2 * 4,
        "q8": size + levels,
        "q4": 65536 // 2 + 17 + levels,
        "q2": 65536 // 4 + 9 + levels,
        "q1": 65536 // 8 + 5 + levels,
    }
    assert tuple(expected) == codec.CODECS
    for name, values in expected.items():
        assert codec.encoded_size((TensorSpec("t", (size,)),), name) == around + values
        assert codec.encoded_size((TensorSpec("t", (size,)),), name, ["loss"]) == around + metric + values


@pytest.mark.parametrize(("name", "share"), [("q8", 0.254), ("q4", 0.129), ("q2", 0.067), ("q1", 0.036)])
@pytest.mark.parametrize("size", [199_210, 1_663_370])
def test_the_2nn_s_and_the_cnn_s_updates_are_as_small_as_promised(name: str, share: float, size: int) -> None:
    specs = (TensorSpec("t", (size,)),)
    assert codec.encoded_size(specs, name, ["loss"]) <= share * 4 * size


@pytest.mark.parametrize("name", codec.CODECS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_delta_that_is_not_finite_is_not_encoded(name: str, value: float) -> None:
    delta = (np.zeros((3, 2), np.float32), np.array([value], np.float32))
    with pytest.raises(UpdateError, match=r"^update: tensor 'bias' holds values that are not finite$") as caught:
        encoded(name, delta=delta)
    assert caught.value.reason == "non_finite"


def test_a_delta_of_other_shapes_is_not_encoded() -> None:
    kernel, bias_ = small_update().delta
    with pytest.raises(IntegrityError, match=r"^update: expected 2 tensors, found 1$"):
        encoded(delta=(kernel,))
    with pytest.raises(
        IntegrityError, match=r"^update: tensor 'kernel' should be float32\[3, 2\], but is float32\[2, 3\]$"
    ):
        encoded(delta=(kernel.T, bias_))
    with pytest.raises(IntegrityError, match=r"'bias' should be float32\[1\], but is float64\[1\]$"):
        encoded(delta=(kernel, bias_.astype(np.float64)))


def test_an_unknown_codec_is_named_with_the_known_ones() -> None:
    for call in (lambda: encoded("q3"), lambda: codec.require_codec("q3"), lambda: codec.encoded_size(SPECS, "q3")):
        with pytest.raises(InputError, match=r"^unknown codec 'q3'; known codecs: f32, f16, q8, q4, q2, q1$"):
            call()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": -1}, r"update: weight should be a whole number from 0 to 2\*\*64 - 1, not -1"),
        ({"weight": 2**64}, r"update: weight should be .*, not 18446744073709551616"),
        ({"round_number": -1}, r"update: round should be a whole number from 0 to 2\*\*32 - 1, not -1"),
        ({"round_number": 2**32}, "update: round should be .*, not 4294967296"),
        ({"seed": -1}, r"update: seed should be a whole number from 0 to 2\*\*64 - 1, not -1"),
        (
            {"metrics": {f"m{index}": 0.0 for index in range(codec.MAX_METRICS + 1)}},
            "update: 17 metrics, but the format holds at most 16",
        ),
        ({"metrics": {"ä" * 128: 0.0}}, "update: the metric's name 'ä{20}'… is longer than 255 bytes"),
    ],
)
def test_what_does_not_fit_into_its_field_is_not_encoded(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        encoded(**fields)


def test_as_much_as_fits_is_encoded() -> None:
    metrics = {f"{index:0255}": float(index) for index in range(codec.MAX_METRICS)}
    assert codec.decode(encoded(metrics=metrics), SPECS, MODEL).metrics == metrics


def test_every_reason_to_refuse_bytes() -> None:
    data = encoded()
    content = data[:-4]
    start = 36 + 1 + 4 + 8  # of the values: after the header and one metric
    assert refusal(data[:39]) == ("truncated", "update of 39 bytes: shorter than its header")
    assert refusal(data[:-1]) == ("checksum", "update: the checksum does not match the content")
    for position, byte in ((0, 0), (4, 1), (7, codec.MAX_METRICS + 1)):
        changed = sealed(content[:position] + bytes([byte]) + content[position + 1 :])
        assert refusal(changed) == ("format", "update: not an encoded update of format 2")
    unknown = sealed(content[:6] + bytes([6]) + content[7:])
    assert refusal(unknown) == ("format", "update: no codec of format 2 has the number 6")
    message = f"update: made for the model {MODEL[:16]}…, expected {'f' * 16}…"
    assert refusal(data, "f" * 32) == ("model", message)
    for tail, size in ((content[start:-1], 27), (content[start:] + b"\0", 29)):
        expected = ("shape", f"update: {size} bytes of values, expected 28 for this model")
        assert refusal(sealed(content[:start] + tail)) == expected
    for end in (36, 37, start - 1):
        assert refusal(sealed(content[:end])) == ("truncated", "update: ends within its metrics")
    latin = sealed(content[:37] + b"\xff" + content[38:])
    assert refusal(latin) == ("format", "update: the name of a metric is not UTF-8")


def decode_or_refuse(data: bytes) -> None:
    """Decode; nothing but an update of the right shapes or a documented refusal may come of it."""
    try:
        update = codec.decode(data, SPECS, MODEL)
    except UpdateError as error:
        assert error.reason in REASONS
    else:
        assert [tensor.shape for tensor in update.delta] == [(3, 2), (1,)]


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    decode_or_refuse(data)
    decode_or_refuse(sealed(data))


@given(
    st.sampled_from(codec.CODECS),
    st.lists(st.tuples(st.integers(0, 70), st.integers(0, 255)), max_size=6),
    st.integers(0, 90),
)
def test_a_damaged_update_is_decoded_or_refused(name: str, changes: list[tuple[int, int]], end: int) -> None:
    content = bytearray(encoded(name)[:-4])
    for position, byte in changes:
        content[position % len(content)] = byte
    decode_or_refuse(sealed(bytes(content)))
    decode_or_refuse(sealed(bytes(content[:end])))
    decode_or_refuse(bytes(content))


@pytest.mark.parametrize("name", codec.CODECS[1:])
@pytest.mark.parametrize("unit", [struct.pack("<f", np.inf), b"\xff\x7f" * 2])
def test_what_is_not_finite_is_seen_before_it_is_decoded(name: str, unit: bytes) -> None:
    content = bytearray(encoded(name, metrics={})[:-4])
    assert codec.read_update(sealed(bytes(content)), SPECS, MODEL).finite
    if name == "f16":
        content[-4:] = unit
    else:  # the exponent stands before the level of the only block
        content[-3:-1] = unit[-2:]
    update = codec.read_update(sealed(bytes(content)), SPECS, MODEL)
    assert not update.finite
    assert update.values().shape == (7,)


def test_float16_times_a_unit_that_no_encoder_writes_is_taken_for_infinite() -> None:
    content = bytearray(encoded("f16", metrics={})[:-4])
    for unit, finite in ((2.0**45, True), (-(2.0**45), True), (2.0**46, False), (-(2.0**127), False), (np.nan, False)):
        content[-4:] = struct.pack("<f", unit)
        update = codec.read_update(sealed(bytes(content)), SPECS, MODEL)
        assert update.finite == finite
        assert np.isfinite(update.values()).all() or not finite
    largest = np.array([np.nextafter(np.float32(2.0**60), np.float32(0))], np.float32)
    assert codec.read_update(encoded("f16", delta=(np.zeros((3, 2), np.float32), largest)), SPECS, MODEL).finite


def test_float32_that_is_not_finite_is_seen() -> None:
    content = bytearray(encoded("f32", metrics={})[:-4])
    content[36:40] = struct.pack("<f", np.nan)
    update = codec.read_update(sealed(bytes(content)), SPECS, MODEL)
    assert not update.finite
    with pytest.raises(UpdateError, match="tensor 'kernel' holds values that are not finite"):
        codec.require_finite(codec.shaped(update.values(), SPECS), SPECS)
