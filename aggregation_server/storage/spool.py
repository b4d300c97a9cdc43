"""Reports on disk: what is acknowledged is here until its round is over, and no longer.

A folder a round, and in it a *segment* for each server that takes reports: a file that only grows. The reports of a
batch are written behind one another, and brought to the medium together. Which bytes of it count, the database says:
where its transaction failed, it is asked before the next one what became of it (docs/server.md).
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from aggregation_server.storage.database import StoreError
from aggregation_server.storage.once import write_once
from aggregation_server.storage.rows import Spooled
from device_runtime.errors import InputError

_PREFIX = "round-"
_IDENTITY = "identity"
_PROBE = 64 << 10  # bytes: some file systems keep less where there is always room


class SpoolError(StoreError):
    """The reports could not be written, and nothing of them is there."""


class LostReportError(StoreError):
    """A report that counts is not in the folder."""


class Spool:
    """A folder that all servers of a fleet share. Only one thread writes; several may read.

    Args:
        folder: made where it is missing.

    Attributes:
        folder: as given.
        identity: of the folder, whatever its path: the database remembers where its reports are.
        in_doubt: whether nobody knows yet if what was appended last counts.

    Raises:
        InputError: the folder can't be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.in_doubt = False
        self._segment = _new_segment()
        self._round_id = -1
        self._file = -1
        self._size = 0
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.identity = _identity_of(folder)
            for path in (folder, folder.absolute().parent):
                _sync(path)
        except OSError as error:
            raise InputError(f"{folder}: can't keep reports there: {error.strerror}; choose another --spool") from None

    @property
    def segment(self) -> tuple[int, str]:
        """The current segment: its round's id and its name."""
        return self._round_id, self._segment

    def probe(self) -> None:
        """Write something, and delete it again; any thread may.

        Raises:
            SpoolError: the disk is full, or failed.
        """
        path = self.folder / f".{self._segment}"
        try:
            try:
                with path.open("wb", buffering=0) as file:
                    _write_all(file.fileno(), [bytes(_PROBE)])
                    os.fdatasync(file.fileno())
            finally:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise SpoolError(f"{self.folder}: can't write reports: {error.strerror}") from None

    def free(self) -> int:
        """Bytes that are free on the spool's disk.

        Raises:
            SpoolError: it can't be asked.
        """
        try:
            return shutil.disk_usage(self.folder).free
        except OSError as error:
            raise SpoolError(f"{self.folder}: can't be looked at: {error.strerror}") from None

    def append(self, round_id: int, reports: Sequence[bytes]) -> list[Spooled]:
        """Write reports of a round, and return when they are on the medium. They are in doubt until `keep` or `cut`.

        Raises:
            SpoolError: the disk is full, or failed; the segment is as it was.
        """
        assert not self.in_doubt  # whoever goes on has asked the database
        try:
            if round_id != self._round_id:
                self._begin(round_id)
            try:
                _write_all(self._file, reports)
                os.fdatasync(self._file)
            except OSError:
                self.cut(self._size)
                raise
        except OSError as error:
            raise SpoolError(f"{self.folder}: can't write reports: {error.strerror}") from None
        self.in_doubt = True
        places = []
        for report in reports:
            places.append(Spooled(self._segment, self._size, len(report)))
            self._size += len(report)
        return places

    def keep(self) -> None:
        """What was appended last counts."""
        self.in_doubt = False

    def cut(self, size: int) -> None:
        """Of the segment, only its first `size` bytes count: the rest is given back to the disk."""
        self.in_doubt = False
        self._size = size
        if self._file >= 0:
            try:
                os.ftruncate(self._file, size)
            except OSError:  # nothing is ever written behind bytes that are not known
                self.close()

    def read(self, round_id: int, spooled: Spooled) -> bytes:
        """The bytes of a report.

        Raises:
            LostReportError: they are not there.
            StoreError: the disk failed.
        """
        path = self._path(round_id) / spooled.segment
        try:
            with path.open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), spooled.length, spooled.place)
        except FileNotFoundError:
            raise LostReportError(f"{path}: the file with reports that count is not there") from None
        except OSError as error:
            raise StoreError(f"{path}: can't read a report: {error.strerror}") from None
        if len(data) != spooled.length:
            raise LostReportError(f"{path}: a report of {spooled.length} bytes is cut off")
        return data

    def forget_before(self, round_id: int) -> None:
        """Delete the reports of all rounds before this one; those of a server that was killed, too."""
        if self._round_id < round_id:
            self.close()  # a file that is open stays on the disk
        for path in self.folder.glob(f"{_PREFIX}*"):
            number = path.name.removeprefix(_PREFIX)
            if number.isdecimal() and int(number) < round_id:
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._segment = _new_segment()
        self._file, self._round_id, self._size, self.in_doubt = -1, -1, 0, False

    def _begin(self, round_id: int) -> None:
        self.close()
        folder = self._path(round_id)
        folder.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(folder / self._segment, flags, 0o600)
        self._size = os.fstat(self._file).st_size
        self._round_id = round_id
        for path in (folder, self.folder):  # the names must be on the medium too
            _sync(path)

    def _path(self, round_id: int) -> Path:
        return self.folder / f"{_PREFIX}{round_id}"


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


def _new_segment() -> str:
    return f"{secrets.token_hex(8)}.reports"  # no other server's, nor this one's before


def _identity_of(folder: Path) -> str:
    path = folder / _IDENTITY
    write_once(path, secrets.token_hex(16) + "\n")
    identity = path.read_text().strip()
    if not re.fullmatch("[0-9a-f]{32}", identity):
        raise InputError(f"{path}: expected 32 hexadecimal digits; delete it where no reports wait in this folder")
    return identity
