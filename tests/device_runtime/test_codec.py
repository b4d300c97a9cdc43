"""The codec by its laws: identity, unbiasedness, exact sizes, and a decoder that survives any bytes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import codec
from device_runtime.errors import InputError, IntegrityError, UpdateError
from device_runtime.tensors import FloatArray, TensorSpec
from device_runtime.update import ClientUpdate

MODEL = "0123456789abcdef" * 2
SPECS = (TensorSpec("kernel", (3, 2)), TensorSpec("bias", (1,)))
REASONS = {"truncated", "checksum", "format", "model", "shape"}
BLOCK = 512

LARGE = float(np.float32(3e38))

finite = st.floats(width=32, min_value=-LARGE, max_value=LARGE)
tensors = st.lists(finite, min_size=1, max_size=30).map(lambda values: np.array(values, np.float32))


def through(values: FloatArray, name: str = "q8", seed: int = 0) -> FloatArray:
    """A flat tensor, encoded and decoded."""
    specs = (TensorSpec("t", values.shape),)
    data = codec.encode(ClientUpdate((values,), 1, 1), specs, MODEL, name, seed)
    assert len(data) == codec.encoded_size(specs, name)
    return codec.decode(data, specs, MODEL).delta[0]


def scales(values: FloatArray) -> npt.NDArray[np.float64]:
    """Of each element, the scale of its block: a 127th of the block's largest value."""
    blocks = [values[start : start + BLOCK].astype(np.float64) for start in range(0, values.size, BLOCK)]
    return np.concatenate([np.full(block.size, np.abs(block).max() / 127) for block in blocks])


def small_update(**fields: Any) -> ClientUpdate:
    delta = (np.arange(6, dtype=np.float32).reshape(3, 2), np.array([-7], np.float32))
    return ClientUpdate(**({"delta": delta, "weight": 5, "round_number": 3, "metrics": {"loss": 0.25}} | fields))  # type: ignore[arg-type]


def encoded(name: str = "f32", **fields: Any) -> bytes:
    return codec.encode(small_update(**fields), SPECS, MODEL, name, 0)


def sealed(content: bytes) -> bytes:
    """Content with the checksum that belongs to it."""
    return content + struct.pack("<I", zlib.crc32(content))


def refusal(data: bytes, model: str = MODEL) -> tuple[str, str]:
    with pytest.raises(UpdateError) as caught:
        codec.decode(data, SPECS, model)
    return caught.value.reason, str(caught.value)


@given(tensors)
def test_f32_is_the_identity_bit_for_bit(values: FloatArray) -> None:
    assert through(values, "f32").tobytes() == values.tobytes()


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
    header, checksum, metric = 4 + 2 + 1 + 1 + 16 + 4 + 8 + 4, 4, 1 + len("loss") + 8
    specs = (TensorSpec("t", (BLOCK + 1,)),)
    assert codec.encoded_size(specs, "f32") == header + 4 * (BLOCK + 1) + checksum
    assert codec.encoded_size(specs, "q8", ["loss"]) == header + metric + 2 * 4 + BLOCK + 1 + checksum


@given(tensors, st.integers(0, 2**53 - 1))
def test_q8_is_off_by_one_level_at_most(values: FloatArray, seed: int) -> None:
    error = np.abs(through(values, "q8", seed).astype(np.float64) - values)
    # In float32 a level of up to 127 has an error of 2**-17 when divided, and again when multiplied. The scale
    # itself is rounded up to the next float32, which is a large step among the denormal ones.
    assert (error <= scales(values) * (1 + 2**-15) + 2**-149).all()


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 1])
def test_q8_at_the_limits_of_blocks(size: int) -> None:
    values = np.random.default_rng(size).normal(size=size).astype(np.float32)
    values[-1] = 1000.0  # its block's scale, and no other's
    back = through(values)
    assert (np.abs(back - values) <= scales(values) * (1 + 2**-15)).all()
    assert back[-1] == pytest.approx(1000.0, rel=1e-6)


@pytest.mark.parametrize(
    "value", [0.0, 1e-45, -1e-45, 2e-44, 190 * 2.0**-149, 1e-40, -1.1754944e-38, 1e-30, 127.0, 3e38, -3e38]
)
def test_q8_keeps_a_lone_value(value: float) -> None:
    values = np.array([value], np.float32)
    error = np.abs(through(values).astype(np.float64) - values)
    if abs(value) > 1e-30:
        assert error <= abs(value) * 1e-6
    else:  # a denormal scale has few bits, so that even the largest element of a block falls between two levels
        assert error <= scales(values) + 2**-149


def test_q8_of_zeros_is_zeros() -> None:
    assert not through(np.zeros(BLOCK + 1, np.float32)).any()


def bias(round_trip: Callable[[FloatArray, int], FloatArray]) -> float:
    """How many standard deviations the mean error of a quantiser is from 0, the worst of some inputs.

    With p the fractional part of an element's level, an unbiased error has the variance s²·p·(1 − p), so the
    sum over all elements and N seeds has a known standard deviation: no constant is tuned here.
    """
    rng, seeds = np.random.default_rng(0), range(150)
    worst = 0.0
    for values in (
        rng.normal(size=BLOCK + 1),
        -np.abs(rng.normal(size=BLOCK + 1)),
        np.r_[127, np.full(300, 0.3)],
        np.r_[-127, np.full(300, 100.9)],
        np.r_[127, np.full(300, -1e-3)],
    ):
        x = values.astype(np.float32)
        step = scales(x)
        fraction = x / step - np.floor(x / step)
        deviation = np.sqrt(len(seeds) * (step**2 * fraction * (1 - fraction)).sum())
        error = sum((round_trip(x, seed).astype(np.float64) - x).sum() for seed in seeds)
        worst = max(worst, abs(error) / deviation)
    return worst


def test_q8_is_unbiased() -> None:
    assert bias(lambda values, seed: through(values, "q8", seed)) < 5  # one in 10 million, for each input


@pytest.mark.parametrize(
    "rounding",
    [
        lambda levels, _random: np.rint(levels),
        lambda levels, _random: np.floor(levels),
        lambda levels, _random: np.ceil(levels),
        lambda levels, _random: np.trunc(levels),
        lambda levels, random: np.floor(levels) + (random < np.mod(levels, 1) + 0.03),
        lambda levels, random: np.sign(levels) * (np.floor(np.abs(levels)) + (random < 0.5)),
    ],
    ids=["nearest", "floor", "ceil", "trunc", "three percent too often", "coin"],
)
def test_a_biased_rounding_would_be_seen(rounding: Callable[..., npt.NDArray[np.float64]]) -> None:
    def round_trip(values: FloatArray, seed: int) -> FloatArray:
        step = scales(values)
        return (rounding(values / step, np.random.default_rng(seed).random(values.size)) * step).astype(np.float32)

    assert bias(round_trip) > 10


def test_the_rounding_follows_from_the_seed_alone() -> None:
    update = small_update(delta=(np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2), np.ones(1, np.float32)))
    data = [codec.encode(update, SPECS, MODEL, "q8", seed) for seed in (7, 7, *range(8, 20))]
    assert data[0] == data[1]
    assert len(set(data)) > 6  # of five fractional levels, some fall another way under most other seeds
    assert codec.encode(update, SPECS, MODEL, "f32", 1) == codec.encode(update, SPECS, MODEL, "f32", 2)


def test_tensors_of_an_update_do_not_share_their_rounding() -> None:
    specs = (TensorSpec("a", (BLOCK,)), TensorSpec("b", (BLOCK,)))
    values = np.r_[127, np.full(BLOCK - 1, 0.5)].astype(np.float32)
    data = codec.encode(ClientUpdate((values, values), 1, 1), specs, MODEL, "q8", 0)
    first, second = codec.decode(data, specs, MODEL).delta
    assert 0.3 < (first == second).mean() < 0.7


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
        with pytest.raises(InputError, match=r"^unknown codec 'q3'; known codecs: f32, q8$"):
            call()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": -1}, r"update: weight should be a whole number from 0 to 2\*\*64 - 1, not -1"),
        ({"weight": 2**64}, r"update: weight should be .*, not 18446744073709551616"),
        ({"round_number": -1}, r"update: round should be a whole number from 0 to 2\*\*32 - 1, not -1"),
        ({"round_number": 2**32}, "update: round should be .*, not 4294967296"),
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
    start = 40 + 1 + 4 + 8  # of the tensors: after the header and one metric
    assert refusal(data[:43]) == ("truncated", "update of 43 bytes: shorter than its header")
    assert refusal(data[:-1]) == ("checksum", "update: the checksum does not match the content")
    for position, byte in ((0, 0), (4, 2), (6, 2), (7, codec.MAX_METRICS + 1)):
        changed = sealed(content[:position] + bytes([byte]) + content[position + 1 :])
        assert refusal(changed) == ("format", "update: not an encoded update of format 1")
    other = "f" * 32
    assert refusal(data, other) == ("model", f"update: made for the model {MODEL}, expected {other}")
    many = sealed(content[:36] + struct.pack("<I", 3) + content[40:])
    assert refusal(many) == ("shape", "update: holds 3 tensors, expected 2")
    for tail, size in ((content[start:-1], 27), (content[start:] + b"\0", 29)):
        expected = ("shape", f"update: {size} bytes of tensors, expected 28 for this model")
        assert refusal(sealed(content[:start] + tail)) == expected
    for end in (40, 41, start - 1):
        assert refusal(sealed(content[:end])) == ("truncated", "update: ends within its metrics")
    latin = sealed(content[:41] + b"\xff" + content[42:])
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


def test_hostile_scales_give_values_that_are_refused_later() -> None:
    content = bytearray(encoded("q8", metrics={})[:-4])
    content[40:44] = struct.pack("<f", 3.4e38)  # the scale of the kernel's only block
    update = codec.decode(sealed(bytes(content)), SPECS, MODEL)
    assert np.isinf(update.delta[0]).any()
    with pytest.raises(UpdateError, match="tensor 'kernel' holds values that are not finite"):
        codec.require_finite(update.delta, SPECS)
