"""An update as bytes: header, one payload a tensor, checksum. docs/protocol.md gives the layout.

Two codecs: ``f32``, the identity, and ``q8``, blocks of int8 with stochastic rounding. Both are unbiased:
E[decode(encode(x))] = x, which is what lets the errors of many clients average out.

A decoder trusts no length: the size of every payload follows from the manifest's tensors, so the whole
input is measured against them before anything is allocated.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from device_runtime.errors import InputError, UpdateError
from device_runtime.tensors import FloatArray, TensorSpec, Weights, check_weights
from device_runtime.update import ClientUpdate

MAGIC = b"PFUD"
FORMAT_VERSION = 1
MAX_METRICS = 16
_MAX_METRIC_NAME = 255  # bytes of UTF-8: its length is one byte

# magic, format version, codec, number of metrics, model id, round, weight, number of tensors
_HEADER = struct.Struct("<4sHBB16sIQI")
_METRIC_VALUE = struct.Struct("<d")
_CHECKSUM = struct.Struct("<I")

# Epochs use the Philox keys [seed, 0], [seed, 1], …; the rounding of an update takes one far from them.
_ROUNDING_STREAM = 2**63

_BLOCK = 512  # elements that share one scale: an overhead of 4 bytes in 516
_LEVELS = 127


class TensorCodec(Protocol):
    """How the elements of one tensor become bytes."""

    number: int

    def size(self, elements: int) -> int:
        """Exact number of bytes for a tensor of so many elements."""
        ...

    def encode(self, values: FloatArray, rng: np.random.Generator) -> bytes:
        """Bytes of a flat float32 array of finite values."""
        ...

    def decode(self, payload: memoryview, elements: int) -> FloatArray:
        """A flat float32 array from exactly `size(elements)` bytes; any bytes give some array."""
        ...


class Float32:
    """The identity: little-endian float32."""

    number = 0

    def size(self, elements: int) -> int:
        return 4 * elements

    def encode(self, values: FloatArray, rng: np.random.Generator) -> bytes:
        return values.astype("<f4", copy=False).tobytes()

    def decode(self, payload: memoryview, elements: int) -> FloatArray:
        return np.frombuffer(payload, "<f4").astype(np.float32)


class BlockInt8:
    """Blocks of 512 elements: first every block's scale (float32), then every element as int8.

    With s the block's scale, chosen so that |x| ≤ 127·s, x/s is rounded to one of its two neighbouring
    integers, up with a probability equal to its fractional part; so the expected value is exact.
    """

    number = 1

    def size(self, elements: int) -> int:
        return 4 * math.ceil(elements / _BLOCK) + elements

    def encode(self, values: FloatArray, rng: np.random.Generator) -> bytes:
        count = values.size
        blocks = np.zeros((math.ceil(count / _BLOCK), _BLOCK), np.float32)
        blocks.reshape(-1)[:count] = values
        # Compared as integers, which order as magnitudes do: ARMv7's vector unit takes subnormal floats for zeros.
        largest = np.abs(blocks).view(np.int32).max(axis=1).view(np.float32)
        scales = _scales(largest)
        levels = blocks / np.where(scales > 0, scales, np.float32(1))[:, None]
        lower: FloatArray = np.floor(levels)
        levels -= lower  # what is left is the probability of rounding up
        lower += rng.random(levels.shape, np.float32) < levels
        payload: bytes = scales.astype("<f4", copy=False).tobytes()
        return payload + lower.astype(np.int8).reshape(-1)[:count].tobytes()

    def decode(self, payload: memoryview, elements: int) -> FloatArray:
        count = math.ceil(elements / _BLOCK)
        scales = np.frombuffer(payload[: 4 * count], "<f4").astype(np.float32)
        values = np.frombuffer(payload[4 * count :], np.int8).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # hostile scales give inf or nan, refused later
            values *= np.repeat(scales, _BLOCK)[:elements]
        return values


def _scales(largest: FloatArray) -> FloatArray:
    """The smallest float32 s with largest ≤ 127·s, so that no level lies outside int8."""
    scales = (largest / np.float32(_LEVELS)).astype(np.float32)
    short = scales.astype(np.float64) * _LEVELS < largest.astype(np.float64)
    return np.where(short, np.nextafter(scales, np.float32(np.inf)), scales).astype(np.float32)


_TENSOR_CODECS: dict[str, TensorCodec] = {"f32": Float32(), "q8": BlockInt8()}
_NAMES = {codec.number: name for name, codec in _TENSOR_CODECS.items()}

CODECS = tuple(_TENSOR_CODECS)


def encoded_size(specs: Sequence[TensorSpec], codec: str, metrics: Sequence[str] = ()) -> int:
    """Exact length in bytes of an encoded update.

    Args:
        specs: the model's tensors.
        codec: one of `CODECS`.
        metrics: the names of the update's metrics.

    Raises:
        InputError: the codec is not known.
    """
    tensor_codec = _codec(codec)
    names = sum(1 + len(name.encode()) + _METRIC_VALUE.size for name in metrics)
    return _HEADER.size + names + sum(tensor_codec.size(spec.size) for spec in specs) + _CHECKSUM.size


def encode(update: ClientUpdate, specs: Sequence[TensorSpec], model_id: str, codec: str, seed: int) -> bytes:
    """Encode an update for its way to the server.

    Args:
        update: the client's result; its delta finite, as `specs` say.
        specs: the model's tensors, in the manifest's order.
        model_id: the manifest's model id, 32 hexadecimal digits.
        codec: one of `CODECS`.
        seed: the client's seed in this round; fixes the stochastic rounding.

    Raises:
        InputError: the codec is not known, or a number or a metric's name does not fit into its field.
        IntegrityError: a tensor has another shape than `specs` say.
        UpdateError: a value is not finite (reason ``non_finite``).
    """
    tensor_codec = _codec(codec)
    check_weights(update.delta, specs, "update")
    require_finite(update.delta, specs)
    _require_encodable(update)
    rng = np.random.Generator(np.random.Philox(key=[seed, _ROUNDING_STREAM]))
    header = _HEADER.pack(
        MAGIC,
        FORMAT_VERSION,
        tensor_codec.number,
        len(update.metrics),
        bytes.fromhex(model_id),
        update.round_number,
        update.weight,
        len(specs),
    )
    metrics = [
        bytes([len(name.encode())]) + name.encode() + _METRIC_VALUE.pack(value)
        for name, value in sorted(update.metrics.items())
    ]
    payloads = [tensor_codec.encode(tensor.reshape(-1), rng) for tensor in update.delta]
    content = b"".join([header, *metrics, *payloads])
    return content + _CHECKSUM.pack(zlib.crc32(content))


def decode(data: bytes, specs: Sequence[TensorSpec], model_id: str) -> ClientUpdate:
    """Decode what `encode` wrote. The delta may hold non-finite values: see `require_finite`.

    Raises:
        UpdateError: with the reason ``truncated``, ``checksum``, ``format``, ``model`` or ``shape``; any
            bytes whatever give an update or this error.
    """
    if len(data) < _HEADER.size + _CHECKSUM.size:
        raise UpdateError("truncated", f"update of {len(data)} bytes: shorter than its header")
    content = memoryview(data)[: -_CHECKSUM.size]
    (checksum,) = _CHECKSUM.unpack_from(data, len(content))
    if zlib.crc32(content) != checksum:
        raise UpdateError("checksum", "update: the checksum does not match the content")
    magic, version, number, metric_count, model, round_number, weight, tensors = _HEADER.unpack_from(content)
    if magic != MAGIC or version != FORMAT_VERSION or number not in _NAMES or metric_count > MAX_METRICS:
        raise UpdateError("format", f"update: not an encoded update of format {FORMAT_VERSION}")
    if model.hex() != model_id:
        raise UpdateError("model", f"update: made for the model {model.hex()}, expected {model_id}")
    if tensors != len(specs):
        raise UpdateError("shape", f"update: holds {tensors} tensors, expected {len(specs)}")
    metrics, offset = _decode_metrics(content, metric_count)
    tensor_codec = _TENSOR_CODECS[_NAMES[number]]
    sizes = [tensor_codec.size(spec.size) for spec in specs]
    if len(content) - offset != sum(sizes):
        raise UpdateError(
            "shape", f"update: {len(content) - offset} bytes of tensors, expected {sum(sizes)} for this model"
        )
    delta = []
    for spec, size in zip(specs, sizes, strict=True):
        values = tensor_codec.decode(content[offset : offset + size], spec.size)
        delta.append(values.reshape([d for d in spec.shape if d is not None]))
        offset += size
    return ClientUpdate(tuple(delta), weight, round_number, metrics)


def require_finite(delta: Weights, specs: Sequence[TensorSpec]) -> None:
    """Raise `UpdateError` (reason ``non_finite``), naming the tensor, where a value is NaN or infinite."""
    for tensor, spec in zip(delta, specs, strict=True):
        if not np.isfinite(tensor).all():
            raise UpdateError("non_finite", f"update: tensor {spec.name!r} holds values that are not finite")


def require_codec(name: str) -> None:
    """Raise `InputError` where `name` is not one of `CODECS`."""
    _codec(name)


def _require_encodable(update: ClientUpdate) -> None:
    if not 0 <= update.weight < 2**64:
        raise InputError(f"update: weight should be a whole number from 0 to 2**64 - 1, not {update.weight}")
    if not 0 <= update.round_number < 2**32:
        raise InputError(f"update: round should be a whole number from 0 to 2**32 - 1, not {update.round_number}")
    if len(update.metrics) > MAX_METRICS:
        raise InputError(f"update: {len(update.metrics)} metrics, but the format holds at most {MAX_METRICS}")
    for name in update.metrics:
        if len(name.encode()) > _MAX_METRIC_NAME:
            raise InputError(f"update: the metric's name {name[:20]!r}… is longer than {_MAX_METRIC_NAME} bytes")


def _decode_metrics(content: memoryview, count: int) -> tuple[dict[str, float], int]:
    metrics: dict[str, float] = {}
    offset = _HEADER.size
    for _ in range(count):
        end = offset + 1 + (content[offset] if offset < len(content) else 0)
        if end + _METRIC_VALUE.size > len(content):
            raise UpdateError("truncated", "update: ends within its metrics")
        try:
            name = str(content[offset + 1 : end], "utf-8")
        except UnicodeDecodeError:
            raise UpdateError("format", "update: the name of a metric is not UTF-8") from None
        (metrics[name],) = _METRIC_VALUE.unpack_from(content, end)
        offset = end + _METRIC_VALUE.size
    return metrics, offset


def _codec(name: str) -> TensorCodec:
    if name not in _TENSOR_CODECS:
        raise InputError(f"unknown codec {name!r}; known codecs: {', '.join(CODECS)}")
    return _TENSOR_CODECS[name]
