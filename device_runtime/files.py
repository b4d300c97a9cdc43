"""Files that neither a kill nor a power cut tears, and locks that end with the process that holds them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from device_runtime.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PIECE = 1 << 16


def write_whole(path: Path, pieces: Iterable[bytes | memoryview], private: bool = False) -> None:
    """Write a file that at any instant has its old content or all of the new one: beside it, flushed, then renamed.

    One process at a time writes a path; what a killed one left beside it is written over. A `private` file is its
    owner's alone (mode 0600), before there is a byte in it.

    Raises:
        InputError: it can't be written; the old content stands.
    """
    try:
        replace_whole(path, pieces, private)
    except OSError as error:
        raise unwritable(path, error) from None


def replace_whole(path: Path, pieces: Iterable[bytes | memoryview], private: bool = False) -> None:
    """`write_whole` for those who have words of their own for what goes wrong.

    Raises:
        OSError: it can't be written; the old content stands.
    """
    beside = path.with_name(f"{path.name}.new")
    try:
        if private:
            beside.unlink(missing_ok=True)  # what is there already keeps the mode that it has
        with open(beside, "wb", opener=_open_private if private else None) as file:
            for piece in pieces:
                file.write(piece)
            flush(file)
        beside.replace(path)
        flush_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL, 0o600)


def flush(file: BinaryIO) -> None:
    """Have what was written on the disk, not only in the system's memory."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """The same for the names in a folder, where the system can."""
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def unwritable(path: Path, error: OSError) -> InputError:
    """What a file that can't be written is told as."""
    return InputError(f"{path}: can't write it: {error.strerror}; make room there, or change --cache or --state")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal; of nothing, where there is none."""
    digest = hashlib.sha256()
    with contextlib.suppress(FileNotFoundError):
        for piece in pieces_of(path):
            digest.update(piece)
    return digest.hexdigest()


def pieces_of(path: Path) -> Iterator[bytes]:
    """A file's content, no more of it in memory at a time than a piece."""
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


class Lock:
    """A file that one process at a time has locked; the system lets go of it when the process ends, however it ends.

    Where there are no such locks, on Windows, nobody has it.
    """

    available = fcntl is not None

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def acquire(self) -> bool:
        """Lock it; False where another process has it, or the system has no locks.

        Raises:
            OSError: the file can't be made.
        """
        if fcntl is None:
            return False
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while self._file is None:
            file = self._path.open("ab")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                return False
            if self._is_at_its_place(file):
                self._file = file
            else:  # whoever had it has removed it meanwhile
                file.close()
        return True

    def release(self) -> None:
        """Let go of it, and remove the file."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _is_at_its_place(self, file: BinaryIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False
