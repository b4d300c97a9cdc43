"""A light HTTP/1.1 client: one request at a time on a connection that stays open."""

from __future__ import annotations

import asyncio
import re
from typing import cast
from urllib.parse import urlsplit

from benchmarks.errors import BenchmarkError

_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def request_head(method: str, path: str, headers: dict[str, str], length: int | None = None) -> bytes:
    """The bytes of a request before its body."""
    lines = [f"{method} {path} HTTP/1.1", "Host: pocketfed", *(f"{name}: {value}" for name, value in headers.items())]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join((*lines, "", "")).encode()


class Connection(asyncio.Protocol):
    """A connection to a server; `Connection.open` makes one."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._needed = 0  # bytes of the answer, once its head is there

    @classmethod
    async def open(cls, url: str) -> Connection:
        """Connect to the server at `url`."""
        where = urlsplit(url)
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                cls, where.hostname or "", where.port or 80
            )
        except OSError as error:
            raise BenchmarkError(f"{url}: can't connect: {error.strerror}") from None
        return connection

    @property
    def closed(self) -> bool:
        """Whether the server has closed it."""
        return self._transport is None

    def ask(self, head: bytes, body: bytes = b"") -> asyncio.Future[tuple[int, bytes]]:
        """Send a request; the status and the body of its answer.

        Raises:
            BenchmarkError: the connection is closed, or the last answer is not there yet.
        """
        if self._transport is None or self._answer is not None:
            raise BenchmarkError("the server closed the connection, or has not answered the last request")
        self._answer = answer = asyncio.get_running_loop().create_future()
        if len(body) < 4096:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
        return answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._needed:
            end = self._buffer.find(_END)
            if end < 0:
                return
            length = _LENGTH.search(self._buffer, 0, end)
            self._needed = end + len(_END) + (0 if length is None else int(length[1]))
        if len(self._buffer) < self._needed:
            return
        start = self._buffer.find(_END) + len(_END)
        status, body = int(self._buffer[9:12]), bytes(self._buffer[start : self._needed])
        del self._buffer[: self._needed]
        self._needed, answer, self._answer = 0, self._answer, None
        if answer is not None and not answer.done():
            answer.set_result((status, body))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(BenchmarkError(f"the server closed the connection: {error or 'no answer'}"))
        self._answer = None

    def close(self) -> None:
        """Close it."""
        if self._transport is not None:
            self._transport.close()
