"""What stands around the values of an encoded update: a header, metrics, a checksum. docs/codec.md gives the layout."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from device_runtime.errors import InputError, UpdateError

MAGIC = b"PFUD"
FORMAT_VERSION = 2
MAX_METRICS = 16
_MAX_METRIC_NAME = 255  # bytes of UTF-8: its length is one byte

# magic, format version, codec, number of metrics, first half of the model id, round, weight, seed
_HEADER = struct.Struct("<4sHBB8sIQQ")
_METRIC_VALUE = struct.Struct("<d")
CHECKSUM = struct.Struct("<I")
_MODEL_ID_DIGITS = 16


@dataclass(frozen=True)
class UpdateHeader:
    """What an encoded update says of itself.

    Attributes:
        codec: the codec's number.
        model_id: 32 hexadecimal digits, of which an update carries the first half.
        round_number: the round that it belongs to; fixes the rotation.
        weight: n_k, the number of examples.
        seed: of the codec's random numbers: the client's in this round.
        metrics: named numbers.
    """

    codec: int
    model_id: str
    round_number: int
    weight: int
    seed: int
    metrics: Mapping[str, float] = field(default_factory=dict)

    def pack(self) -> bytes:
        """The bytes before the values.

        Raises:
            InputError: a number or a metric's name does not fit into its field.
        """
        _require("weight", self.weight, 64)
        _require("round", self.round_number, 32)
        _require("seed", self.seed, 64)
        if len(self.metrics) > MAX_METRICS:
            raise InputError(f"update: {len(self.metrics)} metrics, but the format holds at most {MAX_METRICS}")
        start = _HEADER.pack(
            MAGIC,
            FORMAT_VERSION,
            self.codec,
            len(self.metrics),
            bytes.fromhex(self.model_id[:_MODEL_ID_DIGITS]),
            self.round_number,
            self.weight,
            self.seed,
        )
        return start + b"".join(_packed_metric(name, value) for name, value in sorted(self.metrics.items()))

    @classmethod
    def unpack(cls, content: memoryview, model_id: str) -> tuple[UpdateHeader, int]:
        """The header of an update without its checksum, and where the values start.

        Raises:
            UpdateError: with the reason ``truncated``, ``format`` or ``model``.
        """
        if len(content) < _HEADER.size:
            raise UpdateError("truncated", f"update of {len(content)} bytes: shorter than its header")
        magic, version, codec, metric_count, model, round_number, weight, seed = _HEADER.unpack_from(content)
        if magic != MAGIC or version != FORMAT_VERSION or metric_count > MAX_METRICS:
            raise UpdateError("format", f"update: not an encoded update of format {FORMAT_VERSION}")
        if model.hex() != model_id[:_MODEL_ID_DIGITS]:
            expected = model_id[:_MODEL_ID_DIGITS]
            raise UpdateError("model", f"update: made for the model {model.hex()}…, expected {expected}…")
        metrics, offset = _unpacked_metrics(content, metric_count)
        return cls(codec, model_id, round_number, weight, seed, metrics), offset


def header_size(metrics: Mapping[str, float] | list[str] | tuple[str, ...]) -> int:
    """Bytes before the values of an update with metrics of these names."""
    return _HEADER.size + sum(1 + len(name.encode()) + _METRIC_VALUE.size for name in metrics)


def checked(data: bytes) -> memoryview:
    """An update without its checksum, once that has been compared.

    Raises:
        UpdateError: with the reason ``truncated`` or ``checksum``.
    """
    if len(data) < _HEADER.size + CHECKSUM.size:
        raise UpdateError("truncated", f"update of {len(data)} bytes: shorter than its header")
    content = memoryview(data)[: -CHECKSUM.size]
    (checksum,) = CHECKSUM.unpack_from(data, len(content))
    if zlib.crc32(content) != checksum:
        raise UpdateError("checksum", "update: the checksum does not match the content")
    return content


def _packed_metric(name: str, value: float) -> bytes:
    encoded = name.encode()
    if len(encoded) > _MAX_METRIC_NAME:
        raise InputError(f"update: the metric's name {name[:20]!r}… is longer than {_MAX_METRIC_NAME} bytes")
    return bytes([len(encoded)]) + encoded + _METRIC_VALUE.pack(value)


def _unpacked_metrics(content: memoryview, count: int) -> tuple[dict[str, float], int]:
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


def _require(name: str, value: int, bits: int) -> None:
    if not 0 <= value < 2**bits:
        raise InputError(f"update: {name} should be a whole number from 0 to 2**{bits} - 1, not {value}")
