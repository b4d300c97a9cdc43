"""Weights as safetensors bytes, in the order of a manifest's tensors.

The format (https://huggingface.co/docs/safetensors) is a length, a JSON header and raw little-endian data.
It is read here by hand because the device's wheel carries no further dependency. The bytes written are
canonical (manifest order, no metadata), so that equal weights have equal content hashes.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from device_runtime.errors import InputError, IntegrityError
from device_runtime.tensors import FloatArray, TensorSpec, Weights, check_weights

_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 8
_NAMES = {"float32": "F32", "int32": "I32"}


def dump_weights(weights: Weights, specs: Sequence[TensorSpec]) -> bytes:
    """Weights (float32, shapes as in `specs`) as canonical safetensors bytes.

    Raises:
        IntegrityError: a tensor's shape or dtype is not as `specs` say.
    """
    check_weights(weights, specs, "weights")
    header: dict[str, Any] = {}
    offset = 0
    for spec in specs:
        end = offset + spec.size * np.dtype(spec.dtype).itemsize
        header[spec.name] = {"dtype": _NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH.size + len(text)) % _ALIGNMENT)
    payload = [array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes() for array in weights]
    return b"".join([_LENGTH.pack(len(text)), text, *payload])


def load_weights(data: bytes, specs: Sequence[TensorSpec], where: str = "weights") -> Weights:
    """Read safetensors bytes whose tensors are exactly those of `specs`, in any order.

    Args:
        data: the bytes of a file, of this project or of any other writer.
        specs: what the model wants; float32.
        where: the file's name, for messages.

    Raises:
        IntegrityError: the bytes are no safetensors file, or hold other tensors.
    """
    header, body = _split(data, where)
    _check_names(header, specs, where)
    return tuple(_tensor(header[spec.name], spec, body, where) for spec in specs)


class WeightsFile:
    """The weights of a safetensors file, which are read in parts and take no memory; a context that closes the file.

    Attributes:
        shapes: of the tensors, in the order of `specs`.

    Raises:
        InputError: the file can't be read.
        IntegrityError: it is no safetensors file, or holds other tensors.
    """

    def __init__(self, path: Path, specs: Sequence[TensorSpec]) -> None:
        self._path = path
        self.shapes = [tuple(size for size in spec.shape if size is not None) for spec in specs]
        try:
            self._file = path.open("rb")  # kept open, so that a file that takes its place changes nothing
        except OSError as error:
            raise _unreadable(path, error) from None
        try:
            self._places = self._find(specs)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _find(self, specs: Sequence[TensorSpec]) -> list[tuple[int, np.dtype[Any]]]:
        """Where each tensor begins, and its dtype."""
        where = str(self._path)
        try:
            size = os.fstat(self._file.fileno()).st_size
            length = self._file.read(_LENGTH.size)
            text = self._file.read(_header_length(length, size, where))
        except OSError as error:
            raise _unreadable(self._path, error) from None
        header = _parse(text, where)
        _check_names(header, specs, where)
        start = len(length) + len(text)
        return [(start + _offset(header[spec.name], spec, size - start, where), np.dtype(spec.dtype)) for spec in specs]

    def read(self, tensor: int, start: int, size: int) -> FloatArray:
        """`size` values of a tensor from `start` on, flat."""
        offset, dtype = self._places[tensor]
        try:
            self._file.seek(offset + start * dtype.itemsize)
            data = self._file.read(size * dtype.itemsize)
        except OSError as error:
            raise _unreadable(self._path, error) from None
        if len(data) < size * dtype.itemsize:
            raise IntegrityError(f"{self._path}: became shorter while it was read")
        return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype, copy=False)


def _check_names(header: dict[str, Any], specs: Sequence[TensorSpec], where: str) -> None:
    expected = {spec.name for spec in specs}
    if set(header) != expected:
        missing, extra = sorted(expected - set(header)), sorted(set(header) - expected)
        raise IntegrityError(
            f"{where}: these are the weights of another model"
            f" (missing: {', '.join(missing) or 'none'}; unexpected: {', '.join(extra) or 'none'})"
        )


def _split(data: bytes, where: str) -> tuple[dict[str, Any], memoryview]:
    end = _LENGTH.size + _header_length(data, len(data), where)
    return _parse(data[_LENGTH.size : end], where), memoryview(data)[end:]


def _header_length(data: bytes, size: int, where: str) -> int:
    """Bytes of the header in a file of `size` bytes that starts with `data`."""
    if len(data) < _LENGTH.size:
        raise IntegrityError(f"{where}: not a safetensors file ({len(data)} bytes)")
    length: int = _LENGTH.unpack_from(data)[0]
    if length > size - _LENGTH.size:
        raise IntegrityError(f"{where}: not a safetensors file, or truncated (header of {length} bytes)")
    return length


def _parse(text: bytes, where: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise IntegrityError(f"{where}: the safetensors header is not JSON") from None
    if not isinstance(header, dict):
        raise IntegrityError(f"{where}: the safetensors header is not a JSON object")
    header.pop("__metadata__", None)
    return header


def _tensor(entry: Any, spec: TensorSpec, body: memoryview, where: str) -> Any:
    start = _offset(entry, spec, len(body), where)
    raw = np.frombuffer(body, np.dtype(spec.dtype).newbyteorder("<"), spec.size, start)
    return raw.reshape([d for d in spec.shape if d is not None]).astype(spec.dtype)


def _offset(entry: Any, spec: TensorSpec, length: int, where: str) -> int:
    """Where a tensor begins in a body of so many bytes."""
    size = spec.size * np.dtype(spec.dtype).itemsize
    if (
        not isinstance(entry, dict)
        or entry.get("dtype") != _NAMES[spec.dtype]
        or entry.get("shape") != list(spec.shape)
    ):
        found = f"{entry.get('dtype')}{entry.get('shape')}" if isinstance(entry, dict) else repr(entry)
        raise IntegrityError(f"{where}: tensor {spec.name!r} should be {spec}, but is {found}")
    offsets = entry.get("data_offsets")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(isinstance(offset, int) and not isinstance(offset, bool) for offset in offsets)
        or not 0 <= offsets[0] <= offsets[1] <= length
        or offsets[1] - offsets[0] != size
    ):
        raise IntegrityError(f"{where}: tensor {spec.name!r} has wrong data offsets {offsets}")
    return int(offsets[0])


def read_weights(path: Path, specs: Sequence[TensorSpec]) -> Weights:
    """`load_weights` of a file.

    Raises:
        InputError: the file can't be read.
        IntegrityError: it is no safetensors file, or holds other tensors.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    return load_weights(data, specs, str(path))


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: can't read the weights: {error.strerror}")
