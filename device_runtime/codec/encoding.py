"""Updates to bytes and back."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from device_runtime.codec import update_format
from device_runtime.codec.codecs import BY_NUMBER, Codec, codec_named, values_of
from device_runtime.codec.rotation import chunks, rotated, undo
from device_runtime.codec.total import Total
from device_runtime.codec.update_format import CHECKSUM, UpdateHeader
from device_runtime.errors import UpdateError
from device_runtime.tensors import FloatArray, TensorSpec, Weights, check_weights
from device_runtime.update import ClientUpdate


@dataclass(frozen=True)
class EncodedUpdate:
    """An update whose checksum, header and length are right; its values are still encoded.

    Attributes:
        header: what it says of itself.
        codec: how its values are encoded.
        payload: them.
        specs: the model's tensors.
    """

    header: UpdateHeader
    codec: Codec
    payload: memoryview
    specs: Sequence[TensorSpec]

    def add_to(self, total: Total, factor: float) -> None:
        """Add `factor` times the values to the total: rotated ones, where the codec rotates."""
        with np.errstate(over="ignore", invalid="ignore"):  # hostile values give inf or nan: see `finite`
            self.codec.coder(self.header.seed).add(self.payload, total, factor)

    @property
    def finite(self) -> bool:
        """Whether all values are finite."""
        return self.codec.finite(self.payload, values_of(self.specs))

    def values(self) -> FloatArray:
        """All values, flat: float32, rotated back."""
        total = Total(values_of(self.specs))
        self.add_to(total, 1.0)
        with np.errstate(over="ignore", invalid="ignore"):
            values = total.settle()
            if self.codec.rotated:
                undo(values, self.header.round_number)
        return values


def encoded_size(specs: Sequence[TensorSpec], codec: str, metrics: Sequence[str] = ()) -> int:
    """Exact length in bytes of an encoded update.

    Args:
        specs: the model's tensors.
        codec: one of `CODECS`.
        metrics: the names of the update's metrics.

    Raises:
        InputError: the codec is not known.
    """
    return update_format.header_size(tuple(metrics)) + codec_named(codec).size(values_of(specs)) + CHECKSUM.size


def write_update(file: BinaryIO, header: UpdateHeader, tensors: Iterable[FloatArray]) -> int:
    """Encode an update tensor by tensor, with memory for two chunks of 65,536 values.

    Args:
        file: where the bytes go.
        header: all but the values.
        tensors: the delta, float32, in the manifest's order.

    Returns:
        The number of bytes.

    Raises:
        InputError: a number or a metric's name does not fit into its field.
        UpdateError: a value is not finite (reason ``non_finite``).
    """
    checksum, size = 0, 0
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is not finite, and refused
        for piece in _pieces(header, tensors):
            file.write(piece)
            checksum, size = zlib.crc32(piece, checksum), size + len(piece)
    file.write(CHECKSUM.pack(checksum))
    return size + CHECKSUM.size


def _pieces(header: UpdateHeader, tensors: Iterable[FloatArray]) -> Iterator[bytes]:
    yield header.pack()
    codec = BY_NUMBER[header.codec]
    coder = codec.coder(header.seed)
    parts = chunks(tensors)
    for part in rotated(parts, header.round_number) if codec.rotated else parts:
        yield coder.encode(part)
    yield coder.finish()


def encode(update: ClientUpdate, specs: Sequence[TensorSpec], model_id: str, codec: str, seed: int) -> bytes:
    """Encode an update for its way to the server.

    Args:
        update: the client's result; its delta finite, as `specs` say.
        specs: the model's tensors, in the manifest's order.
        model_id: the manifest's model id, 32 hexadecimal digits.
        codec: one of `CODECS`.
        seed: the client's seed in this round; fixes the codec's random numbers.

    Raises:
        InputError: the codec is not known, or a number or a metric's name does not fit into its field.
        IntegrityError: a tensor has another shape than `specs` say.
        UpdateError: a value is not finite (reason ``non_finite``).
    """
    number = codec_named(codec).number
    check_weights(update.delta, specs, "update")
    require_finite(update.delta, specs)
    file = io.BytesIO()
    header = UpdateHeader(number, model_id, update.round_number, update.weight, seed, update.metrics)
    write_update(file, header, update.delta)
    return file.getvalue()


def read_update(data: bytes, specs: Sequence[TensorSpec], model_id: str) -> EncodedUpdate:
    """Verify what `encode` wrote; nothing is decoded yet, and memory is taken for nothing.

    Raises:
        UpdateError: with the reason ``truncated``, ``checksum``, ``format``, ``model`` or ``shape``; any
            bytes whatever give an update or this error.
    """
    content = update_format.checked(data)
    header, offset = UpdateHeader.unpack(content, model_id)
    codec = BY_NUMBER.get(header.codec)
    if codec is None:
        raise UpdateError(
            "format", f"update: no codec of format {update_format.FORMAT_VERSION} has the number {header.codec}"
        )
    expected = codec.size(values_of(specs))
    if len(content) - offset != expected:
        raise UpdateError(
            "shape", f"update: {len(content) - offset} bytes of values, expected {expected} for this model"
        )
    return EncodedUpdate(header, codec, content[offset:], specs)


def decode(data: bytes, specs: Sequence[TensorSpec], model_id: str) -> ClientUpdate:
    """Decode what `encode` wrote. The delta may hold non-finite values: see `require_finite`.

    Raises:
        UpdateError: as `read_update`.
    """
    encoded = read_update(data, specs, model_id)
    header = encoded.header
    return ClientUpdate(shaped(encoded.values(), specs), header.weight, header.round_number, header.metrics)


def shaped(values: FloatArray, specs: Sequence[TensorSpec]) -> Weights:
    """A flat vector as the model's tensors, which share its memory."""
    tensors, start = [], 0
    for spec in specs:
        tensors.append(values[start : start + spec.size].reshape([d for d in spec.shape if d is not None]))
        start += spec.size
    return tuple(tensors)


def require_finite(delta: Weights, specs: Sequence[TensorSpec]) -> None:
    """Raise `UpdateError` (reason ``non_finite``), naming the tensor, where a value is NaN or infinite."""
    for tensor, spec in zip(delta, specs, strict=True):
        if not np.isfinite(tensor).all():
            raise UpdateError("non_finite", f"update: tensor {spec.name!r} holds values that are not finite")


def require_codec(name: str) -> None:
    """Raise `InputError` where `name` is not one of `CODECS`."""
    codec_named(name)
