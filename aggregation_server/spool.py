"""Reports on disk: what is acknowledged is here until its round is over, and no longer.

A folder a round, and in it a *segment* for each server that takes reports: a file that only grows. The reports of a
batch are written behind one another, and brought to the medium together.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from aggregation_server.database import StoreError
from aggregation_server.store import Spooled
from device_runtime.errors import InputError

_PREFIX = "round-"


class SpoolError(StoreError):
    """The reports could not be written, and nothing of them is there."""


class Spool:
    """A folder that all servers of a fleet share. Only one thread writes; several may read.

    Args:
        folder: made where it is missing.

    Raises:
        InputError: the folder can't be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._segment = f"{secrets.token_hex(8)}.reports"  # no other server's, nor this one's before
        self._round_id = -1
        self._file = -1
        self._size = 0
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = folder / f".{self._segment}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(f"{folder}: can't keep reports there: {error.strerror}; choose another --spool") from None

    def append(self, round_id: int, reports: Sequence[bytes]) -> list[Spooled]:
        """Write reports of a round, and return when they are on the medium.

        Raises:
            SpoolError: the disk is full, or failed; the segment is as it was.
        """
        try:
            if round_id != self._round_id:
                self._begin(round_id)
            start = self._size
            try:
                _write_all(self._file, reports)
                os.fdatasync(self._file)
            except OSError:
                self.take_back(start)
                raise
        except OSError as error:
            raise SpoolError(f"{self._folder}: can't write reports: {error.strerror}") from None
        places = []
        for report in reports:
            places.append(Spooled(self._segment, self._size, len(report)))
            self._size += len(report)
        return places

    def take_back(self, size: int) -> None:
        """Shorten the segment to the length that it had before the last reports: they do not count."""
        self._size = size
        if self._file >= 0:
            os.ftruncate(self._file, size)

    @property
    def size(self) -> int:
        """Bytes in the current segment."""
        return self._size

    def read(self, round_id: int, spooled: Spooled) -> bytes:
        """The bytes of a report.

        Raises:
            StoreError: they are not there.
        """
        path = self._path(round_id) / spooled.segment
        try:
            with path.open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), spooled.length, spooled.place)
        except OSError as error:
            raise StoreError(f"{path}: can't read a report: {error.strerror}") from None
        if len(data) != spooled.length:
            raise StoreError(f"{path}: a report of {spooled.length} bytes is cut off")
        return data

    def forget_before(self, round_id: int) -> None:
        """Delete the reports of all rounds before this one; those of a server that was killed, too."""
        for path in self._folder.glob(f"{_PREFIX}*"):
            number = path.name.removeprefix(_PREFIX)
            if number.isdecimal() and int(number) < round_id:
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file, self._round_id, self._size = -1, -1, 0

    def _begin(self, round_id: int) -> None:
        self.close()
        folder = self._path(round_id)
        folder.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(folder / self._segment, flags, 0o600)
        self._size = os.fstat(self._file).st_size
        self._round_id = round_id
        for path in (folder, self._folder):  # the names must be on the medium too
            _sync(path)

    def _path(self, round_id: int) -> Path:
        return self._folder / f"{_PREFIX}{round_id}"


def _write_all(file: int, reports: Sequence[bytes]) -> None:
    for report in reports:
        view = memoryview(report)
        while view:
            view = view[os.write(file, view) :]


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
