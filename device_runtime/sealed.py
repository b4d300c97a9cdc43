"""Sealed files: what a device remembers of a round, with a checksum over all of it.

| bytes | |
| --- | --- |
| 8 | magic ``PFSTATE1`` |
| 4 | length of the header, little-endian |
| | header: a JSON object |
| | payload |
| 32 | SHA-256 of all before |

They are written whole or not at all (`device_runtime.files.write_whole`). The checksum is for what a rename does not
guard against: a disk that lies about its flushes, or a file that something else has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from device_runtime.files import write_whole
from device_runtime.tensors import canonical_json

_MAGIC = b"PFSTATE1"
_LENGTH = struct.Struct("<I")
_DIGEST = 32
_PIECE = 1 << 16


def seal(
    path: Path, header: Mapping[str, Any], payload: Iterable[bytes | memoryview] = (), private: bool = False
) -> None:
    """Write a sealed file; the payload's pieces are asked for one at a time. `private` as of `write_whole`.

    Raises:
        InputError: it can't be written; the old content stands.
    """
    write_whole(path, _with_digest(header, payload), private)


def _with_digest(header: Mapping[str, Any], payload: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    text = canonical_json(dict(header))
    digest = hashlib.sha256()
    for piece in chain((_MAGIC, _LENGTH.pack(len(text)), text), payload):
        digest.update(piece)
        yield piece
    yield digest.digest()


class Sealed:
    """A sealed file that holds; a context that closes it.

    Attributes:
        header: the JSON object.
        size: bytes of the payload.
    """

    def __init__(self, file: BinaryIO, header: dict[str, Any], size: int) -> None:
        self.header = header
        self.size = size
        self._file = file

    def __enter__(self) -> Sealed:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        """The next `size` bytes of the payload."""
        return self._file.read(size)

    def skip(self, size: int) -> None:
        """Pass over the next `size` bytes of the payload."""
        self._file.seek(size, os.SEEK_CUR)


def open_sealed(path: Path) -> Sealed | None:
    """The sealed file at `path`; None where there is none, or where it does not hold."""
    try:
        file = path.open("rb")
    except OSError:
        return None
    try:
        sealed = _verified(file)
    except (OSError, ValueError, RecursionError):
        sealed = None
    if sealed is None:
        file.close()
    return sealed


def remove(path: Path) -> None:
    """Remove a sealed file, if it is there; one that can't be removed is of no more use than one that is damaged."""
    with contextlib.suppress(OSError):
        path.unlink()


def _verified(file: BinaryIO) -> Sealed | None:
    body = os.fstat(file.fileno()).st_size - _DIGEST
    start = len(_MAGIC) + _LENGTH.size
    if body < start:
        return None
    digest, left = hashlib.sha256(), body
    while left:
        piece = file.read(min(_PIECE, left))
        if not piece:
            return None
        digest.update(piece)
        left -= len(piece)
    if file.read(_DIGEST) != digest.digest():
        return None
    file.seek(0)
    if file.read(len(_MAGIC)) != _MAGIC:
        return None
    (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
    header = json.loads(file.read(length))
    return Sealed(file, header, body - start - length) if isinstance(header, dict) else None
