"""Connections: bounded in number, and in how long they may keep the server waiting.

uvicorn bounds neither the time that a request's headers take nor that of a reader who does not read. What is added here
works with any of its protocol classes.

A connection is *waiting* from its beginning, or its last answer, until the next request's headers are complete. All
that wait stand in one list, the longest first: those that wait for too long are closed, and where there are too many
connections, the one that has waited longest makes room. A device whose connection was closed so opens another; what
somebody holds open to keep others out is what goes first.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

_LOOKS = 8  # at the list, in the shortest of the times
_WRITE_BUFFER = 64 << 10  # bytes that wait for a slow reader, besides one chunk of the answer
_MOST_REQUESTS = 16  # of a connection that wait for an answer; devices, browsers and proxies send the next one after it
_MOST_HEADERS = 64 << 10  # bytes of a request line and headers; httptools knows no bound


class Connections:
    """The open connections of one server.

    Args:
        most: how many, at least 1.
        idle_seconds: that one may wait.
        slow_seconds: that an answer may wait for its reader.
    """

    def __init__(self, most: int, idle_seconds: float, slow_seconds: float) -> None:
        self._most = most
        self._idle_seconds = idle_seconds
        self._slow_seconds = slow_seconds
        self._open: dict[Any, asyncio.Transport] = {}
        self._waiting: dict[Any, float] = {}  # since when; dicts keep the order of insertion
        self._stalled: dict[Any, float] = {}
        self._look: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, connection: Any, transport: asyncio.Transport) -> None:
        """A connection was made; it, or another one, is closed where there are too many."""
        self._open[connection] = transport
        self.wait(connection)
        if len(self._open) > self._most:
            self._abort(next(iter(self._waiting)))
        if self._look is None:
            self._later()

    def closed(self, connection: Any) -> None:
        """A connection was lost."""
        self._open.pop(connection, None)
        self._waiting.pop(connection, None)
        self._stalled.pop(connection, None)

    def wait(self, connection: Any) -> None:
        """A connection begins to wait for a request."""
        self._waiting.pop(connection, None)
        if connection in self._open:
            self._waiting[connection] = asyncio.get_running_loop().time()

    def work(self, connection: Any) -> None:
        """A connection has a request."""
        self._waiting.pop(connection, None)

    def stall(self, connection: Any) -> None:
        """A connection's answer waits for its reader."""
        if connection in self._open:
            self._stalled[connection] = asyncio.get_running_loop().time()

    def flow(self, connection: Any) -> None:
        """A connection's answer goes on."""
        self._stalled.pop(connection, None)

    def abort(self, connection: Any) -> None:
        """Close a connection, whatever it still has to say."""
        if connection in self._open:
            self._abort(connection)

    def _abort(self, connection: Any) -> None:
        transport = self._open[connection]
        self.closed(connection)
        transport.abort()  # `close` would wait for a reader who does not read

    def _later(self) -> None:
        seconds = min(self._idle_seconds, self._slow_seconds) / _LOOKS
        self._look = asyncio.get_running_loop().call_later(seconds, self._close_old)

    def _close_old(self) -> None:
        self._look = None
        now = asyncio.get_running_loop().time()
        for times, seconds in ((self._waiting, self._idle_seconds), (self._stalled, self._slow_seconds)):
            while times:
                oldest = next(iter(times))
                if now - times[oldest] < seconds:
                    break
                self._abort(oldest)
        if self._open:
            self._later()


class _Lasting:
    """A transport that may be used until its protocol is told that the connection was lost, as asyncio's own may.

    uvloop's raise once the other side has gone: a device that drops out just when it is answered would be a mistake of
    the server's, with a traceback in the log.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def pause_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def bounded_protocol(connections: Connections, base: Any = AutoHTTPProtocol) -> type[asyncio.Protocol]:
    """uvicorn's protocol class `base`, whose connections are bounded."""

    class BoundedProtocol(base):
        _headers_read = 0
        _body_comes = False
        _unanswered = 0  # requests

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(_Lasting(transport))
            transport.set_write_buffer_limits(_WRITE_BUFFER)
            connections.opened(self, transport)

        def connection_lost(self, exc: Exception | None) -> None:
            connections.closed(self)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            body = self._body_comes  # what is left of one that was answered before its end: it is only let go by
            super().data_received(data)
            if self._answering():
                connections.work(self)
                self._headers_read, self._body_comes = 0, self.cycle.more_body
            elif not body:
                self._headers_read += len(data)
                if self._headers_read > _MOST_HEADERS:
                    connections.abort(self)

        def on_headers_complete(self) -> None:  # of httptools; h11 reads no request before the one in front is answered
            if self._unanswered == _MOST_REQUESTS:
                raise ValueError("too many requests wait")  # status 400, and the connection's end
            super().on_headers_complete()
            self._unanswered += 1

        def on_message_complete(self) -> None:  # of httptools; h11 bounds headers itself
            super().on_message_complete()
            self._body_comes = False

        def on_response_complete(self) -> None:
            self._unanswered -= 1
            super().on_response_complete()
            if not self._answering():  # else the next one was here already
                connections.wait(self)

        def pause_writing(self) -> None:
            super().pause_writing()
            connections.stall(self)

        def resume_writing(self) -> None:
            connections.flow(self)
            super().resume_writing()

        def _answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

    return BoundedProtocol
