"""Downloads to files: hashed as they come, gone on with where they broke off, never whole in memory."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
from pathlib import Path

from device_runtime.errors import IntegrityError, NetworkError
from device_runtime.files import flush, unwritable
from device_runtime.transport import FailedError, Transport, status_error

_PIECE = 1 << 16
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


def fetch(transport: Transport, path: str, identity: str, limit: int, target: Path) -> None:
    """Have the bytes whose SHA-256 is `identity` in the file `target`.

    What has come stands in a file beside it, ``.part``, until it is whole; the next call goes on with it. The server is
    asked for the rest alone (RFC 9110, section 14), and for all if the content is another by now (``If-Range``). An
    attempt that brought some bytes does not count among those that failed.

    Args:
        transport: to the server.
        path: on the server.
        identity: SHA-256, hexadecimal.
        limit: the most bytes that are taken.
        target: its folder exists.

    Raises:
        NetworkError: the server can't be reached or does not have it, or sends more than `limit` bytes.
        TurnedAwayError: it does not take this device.
        IntegrityError: it sent other bytes.
        InputError: the file can't be written.
    """
    part = _Part(target.with_name(f"{target.name}.part"))
    if part.digest() != identity:
        resumed = part.size > 0
        transport.retried(path, lambda: _attempt(transport, path, identity, limit, part))
        if part.digest() != identity and resumed:  # the bytes that were there were others: once more, from the start
            part.restart()
            transport.retried(path, lambda: _attempt(transport, path, identity, limit, part))
        if part.digest() != identity:
            part.restart()
            raise IntegrityError(f"{path}: what the server sent does not have the SHA-256 {identity}")
    part.finish(target)


def _attempt(transport: Transport, path: str, identity: str, limit: int, part: _Part) -> None:
    if part.size > limit:
        part.restart()
    asked = part.size
    headers = {"Range": f"bytes={asked}-", "If-Range": f'"{identity}"'} if asked else {}
    with transport.exchange("GET", path, headers=headers) as answer:
        if answer.status == 200:
            part.restart()
        elif asked and answer.status in (206, 416):
            rest = answer.status == 206 and _is_rest(answer, asked)
            if not rest:
                part.restart()
                raise FailedError("the server's answer to a range is not understood")
        else:
            raise status_error(path, answer.status)
        _receive(answer, path, limit, part)


def _is_rest(answer: http.client.HTTPResponse, start: int) -> bool:
    """Whether this answer is a content's rest, from `start` to its end."""
    found = _CONTENT_RANGE.fullmatch((answer.getheader("Content-Range") or "").strip())
    if found is None:
        return False
    first, last, size = map(int, found.groups())
    return (first, last) == (start, size - 1) and answer.length in (None, size - start)


def _receive(answer: http.client.HTTPResponse, path: str, limit: int, part: _Part) -> None:
    before = part.size
    try:
        while piece := answer.read(_PIECE):
            if part.size + len(piece) > limit:
                part.restart()
                raise NetworkError(f"{path}: the answer is longer than {limit} bytes")
            part.append(piece)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise FailedError(reason, moved=part.size > before) from None
    if answer.length:  # `read` with a length does not tell of a connection that broke
        raise FailedError(f"the answer broke off, {answer.length} bytes too early", moved=part.size > before)


class _Part:
    """The bytes that have come, and the hash of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hash = hashlib.sha256()
        self.size = 0
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            while piece := file.read(_PIECE):
                self._count(piece)

    def digest(self) -> str:
        return self._hash.hexdigest()

    def restart(self) -> None:
        self._hash, self.size = hashlib.sha256(), 0
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(self._path, error) from None

    def append(self, piece: bytes) -> None:
        try:
            with self._path.open("ab") as file:
                file.write(piece)
        except OSError as error:
            raise unwritable(self._path, error) from None
        self._count(piece)

    def finish(self, target: Path) -> None:
        try:
            with self._path.open("ab") as file:
                flush(file)
            self._path.replace(target)
        except OSError as error:
            raise unwritable(target, error) from None

    def _count(self, piece: bytes) -> None:
        self._hash.update(piece)
        self.size += len(piece)
