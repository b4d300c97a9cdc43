"""Weights as safetensors bytes, in the order of a manifest's tensors.

The format (https://huggingface.co/docs/safetensors) is a length, a JSON header and raw little-endian data.
It is read here by hand because the device's wheel carries no further dependency. The bytes written are
canonical (manifest order, no metadata), so that equal weights have equal content hashes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from device_runtime.errors import InputError, IntegrityError
from device_runtime.tensors import TensorSpec, Weights, check_weights

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
    expected = {spec.name for spec in specs}
    if set(header) != expected:
        missing, extra = sorted(expected - set(header)), sorted(set(header) - expected)
        raise IntegrityError(
            f"{where}: these are the weights of another model"
            f" (missing: {', '.join(missing) or 'none'}; unexpected: {', '.join(extra) or 'none'})"
        )
    return tuple(_tensor(header[spec.name], spec, body, where) for spec in specs)


def _split(data: bytes, where: str) -> tuple[dict[str, Any], memoryview]:
    if len(data) < _LENGTH.size:
        raise IntegrityError(f"{where}: not a safetensors file ({len(data)} bytes)")
    (length,) = _LENGTH.unpack_from(data)
    if length > len(data) - _LENGTH.size:
        raise IntegrityError(f"{where}: not a safetensors file, or truncated (header of {length} bytes)")
    try:
        header = json.loads(data[_LENGTH.size : _LENGTH.size + length])
    except (ValueError, RecursionError):
        raise IntegrityError(f"{where}: the safetensors header is not JSON") from None
    if not isinstance(header, dict):
        raise IntegrityError(f"{where}: the safetensors header is not a JSON object")
    header.pop("__metadata__", None)
    return header, memoryview(data)[_LENGTH.size + length :]


def _tensor(entry: Any, spec: TensorSpec, body: memoryview, where: str) -> Any:
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
        or not 0 <= offsets[0] <= offsets[1] <= len(body)
        or offsets[1] - offsets[0] != size
    ):
        raise IntegrityError(f"{where}: tensor {spec.name!r} has wrong data offsets {offsets}")
    raw = np.frombuffer(body[offsets[0] : offsets[1]], np.dtype(spec.dtype).newbyteorder("<"))
    return raw.reshape([d for d in spec.shape if d is not None]).astype(spec.dtype)


def read_weights(path: Path, specs: Sequence[TensorSpec]) -> Weights:
    """`load_weights` of a file.

    Raises:
        InputError: the file can't be read.
        IntegrityError: it is no safetensors file, or holds other tensors.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: can't read the weights: {error.strerror}") from None
    return load_weights(data, specs, str(path))
