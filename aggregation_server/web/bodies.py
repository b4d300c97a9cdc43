"""Bodies of requests: bounded in length, in time, and in the memory that all of them take together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from aggregation_server.coordination.desk import BusyError
from aggregation_server.web.answers import ProblemError

LARGEST_MESSAGE = 4096
"""Bytes of a message in JSON."""
_SLOWEST = 20_000  # bytes a second; a device on a worse line can't report a large model in a round anyway
_BUSY_SECONDS = 10.0
_Message = TypeVar("_Message")


class Memory:
    """So many bytes, for bodies that are being read or wait for their turn."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        """Have `size` bytes within the context; first come, first served.

        Raises:
            BusyError: there were none for too long.
        """
        size = min(size, self._size)  # a single body may be longer than all there is
        if self._queue or self._free < size:
            await self._wait(size)
        else:
            self._free -= size
        try:
            yield
        finally:
            self._free += size
            self._serve()

    async def _wait(self, size: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((size, turn))
        try:
            async with asyncio.timeout(_BUSY_SECONDS):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # it was served in the same moment
                self._free += size
            else:
                self._queue = deque(one for one in self._queue if one[1] is not turn)
            self._serve()
            if isinstance(error, TimeoutError):
                raise BusyError("too many uploads at once") from None
            raise

    def _serve(self) -> None:
        while self._queue and self._queue[0][0] <= self._free:
            size, turn = self._queue.popleft()
            if not turn.done():
                self._free -= size
                turn.set_result(None)


class Readings:
    """Whose bodies are being read: of each caller one at a time.

    A later one takes the place of an earlier one, whose connection has broken most likely, unnoticed by this side.
    """

    def __init__(self) -> None:
        self._clocks: dict[str, asyncio.Timeout] = {}

    @contextmanager
    def of(self, caller: str, clock: asyncio.Timeout) -> Iterator[None]:
        """Within the context, a later body of this caller makes `clock` time out."""
        earlier = self._clocks.get(caller)
        if earlier is not None and not earlier.expired():
            earlier.reschedule(0.0)
        self._clocks[caller] = clock
        try:
            yield
        finally:
            if self._clocks.get(caller) is clock:
                del self._clocks[caller]


def declared_length(request: Request, otherwise: int) -> int:
    """The length of the body as the request says it; `otherwise` where it says none."""
    text = request.headers.get("content-length", "")
    # Zeros in front are allowed, and Python reads no number of thousands of digits.
    return int(text.lstrip("0") or "0") if text.isdecimal() else otherwise


async def read_body(
    request: Request, limit: int, slow_seconds: float, readings: Readings | None = None, caller: str = ""
) -> bytes | None:
    """The body, or None where it is longer than `limit` bytes; no more than that is ever held.

    Args:
        request: whose.
        limit: in bytes.
        slow_seconds: that may go by without a byte of it, and that it may take altogether besides what its bytes take
            on a slow line.
        readings, caller: of a caller of whom one body at a time is read.

    Raises:
        ProblemError: it came too slowly (status 408).
    """
    size = declared_length(request, limit)
    if size > limit:
        return None
    parts: list[bytes] = []
    length = 0
    now = asyncio.get_running_loop().time
    seconds = slow_seconds + size / _SLOWEST
    end = now() + seconds
    try:
        async with asyncio.timeout(slow_seconds) as clock:
            with nullcontext() if readings is None else readings.of(caller, clock):
                async for chunk in request.stream():
                    parts.append(chunk)
                    length += len(chunk)
                    if length > limit:
                        return None
                    if not clock.expired():
                        clock.reschedule(min(end, now() + slow_seconds))
    except TimeoutError:
        message = (
            f"the body did not come within {seconds:.0f} seconds, stood still for {slow_seconds:g}, or another one"
            " of this caller took its place"
        )
        raise ProblemError(408, "slow", message, {"Connection": "close"}) from None
    return b"".join(parts)


async def read_message(
    request: Request, kind: TypeAdapter[_Message], slow_seconds: float, what: str, label: str = ""
) -> _Message:
    """The body as a message in JSON.

    Args:
        request: whose.
        kind: of the message.
        slow_seconds: as of `read_body`.
        what: it is, for a sentence that begins with it.
        label: before what is wrong with a field.

    Raises:
        ProblemError: it is too long, too slow or no such message.
    """
    body = await read_body(request, LARGEST_MESSAGE, slow_seconds)
    if body is None:
        raise ProblemError(413, "too_large", f"{what} has at most {LARGEST_MESSAGE} bytes")
    try:
        return kind.validate_json(body, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise ProblemError(400, "malformed", f"{label}{where}: {first['msg']}") from None
