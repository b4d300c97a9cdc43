"""Bodies of requests: bounded in length, in time, and in the memory that all of them take together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from aggregation_server.web.answers import ProblemError

_SLOWEST = 20_000  # bytes a second; a device on a worse line can't report a large model in a round anyway
_GRACE_SECONDS = 10.0
_BUSY_SECONDS = 10.0


class Memory:
    """So many bytes, for bodies that are being read or wait for their turn."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        """Have `size` bytes within the context; first come, first served.

        Raises:
            ProblemError: there were none for too long (status 503).
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
                raise ProblemError(503, "busy", "too many uploads at once", {"Retry-After": "5"}) from None
            raise

    def _serve(self) -> None:
        while self._queue and self._queue[0][0] <= self._free:
            size, turn = self._queue.popleft()
            if not turn.done():
                self._free -= size
                turn.set_result(None)


async def read_body(request: Request, limit: int) -> bytes | None:
    """The body, or None where it is longer than `limit` bytes; no more than that is ever held.

    Raises:
        ProblemError: it came too slowly (status 408).
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        return None
    parts: list[bytes] = []
    length = 0
    try:
        async with asyncio.timeout(_GRACE_SECONDS + limit / _SLOWEST):
            async for chunk in request.stream():
                parts.append(chunk)
                length += len(chunk)
                if length > limit:
                    return None
    except TimeoutError:
        message = f"the body did not come within {_GRACE_SECONDS + limit / _SLOWEST:.0f} seconds"
        raise ProblemError(408, "slow", message, {"Connection": "close"}) from None
    return b"".join(parts)
