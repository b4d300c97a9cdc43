"""`Desk`: where the requests of the event loop wait for their turn, and the threads that work on them.

One thread takes all that wait and answers them in one transaction, so that the more requests there are, the fewer
transactions and disk flushes each costs. A second one commits rounds meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from aggregation_server.coordination.committer import Committer
from aggregation_server.coordination.coordinator import Coordinator
from aggregation_server.coordination.requests import Request
from aggregation_server.storage.database import StoreError
from device_runtime.errors import NetworkError

logger = logging.getLogger(__name__)

_LONGEST_QUEUE = 4096
_LARGEST_BATCH = 512
_TICK_SECONDS = 0.05
_AGAIN_SECONDS = 1.0
_Result = TypeVar("_Result")


class BusyError(NetworkError):
    """More requests wait than the server will keep waiting."""


@dataclass(frozen=True)
class _Waiting:
    what: Request | Callable[[], Any]
    answer: asyncio.Future[Any]


class Desk:
    """The coordinator's front; to be used from one event loop.

    Args:
        coordinator: answers the requests.
        committer: of the same coordinator.
    """

    def __init__(self, coordinator: Coordinator, committer: Committer) -> None:
        self.coordinator = coordinator
        self._committer = committer
        self._waiting: deque[_Waiting] = deque()
        self._arrived = threading.Condition()
        self._ready = threading.Event()  # a round may be there to be committed
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads = [
            threading.Thread(target=target, name=target.__name__.strip("_"), daemon=True)
            for target in (self._answer, self._commit)
        ]

    def start(self) -> None:
        """Begin to work; called within the event loop."""
        self._loop = asyncio.get_running_loop()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Answer what waits, finish a commit that has begun, and end."""
        with self._arrived:
            self._stopping = True
            self._arrived.notify()
        self._ready.set()
        for thread in self._threads:
            thread.join()

    @property
    def length(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def open(self) -> bool:
        """Whether there is room for requests, and somebody to answer them."""
        alive = all(thread.is_alive() for thread in self._threads)
        return alive and not self._stopping and len(self._waiting) < _LONGEST_QUEUE * 3 // 4

    async def ask(self, request: Request) -> Any:
        """The coordinator's answer to a request.

        Raises:
            BusyError: too many wait already.
            DeniedError: the caller is not known.
            StoreError: the database or the disk failed; nothing happened.
        """
        return await self._put(request)

    async def run(self, call: Callable[[], _Result]) -> _Result:
        """What `call` returns, between two turns: for what changes the fleet otherwise.

        Raises:
            BusyError: too many wait already.
            Exception: whatever it raises.
        """
        return cast(_Result, await self._put(call))

    async def _put(self, what: Request | Callable[[], Any]) -> Any:
        if len(self._waiting) >= _LONGEST_QUEUE or self._stopping:
            raise BusyError("too many requests wait already")
        assert self._loop is not None  # it was started
        waiting = _Waiting(what, self._loop.create_future())
        with self._arrived:
            self._waiting.append(waiting)
            self._arrived.notify()
        return await waiting.answer

    def _answer(self) -> None:
        while True:
            with self._arrived:
                if not self._waiting and not self._stopping:
                    self._arrived.wait(_TICK_SECONDS)
                if not self._waiting and self._stopping:
                    return
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _LARGEST_BATCH))]
            if batch or self.coordinator.due():
                answers = self._answers(batch)
                if batch and self._loop is not None:
                    self._loop.call_soon_threadsafe(_deliver, batch, answers)
            if self.coordinator.committing:
                self._ready.set()

    def _answers(self, batch: list[_Waiting]) -> list[Any]:
        requests = [waiting.what for waiting in batch if not callable(waiting.what)]
        try:
            replies = iter(self.coordinator.handle(requests) if requests or not batch else ())
            return [_result(waiting.what) if callable(waiting.what) else next(replies) for waiting in batch]
        except Exception as error:  # the desk must go on, or nobody would ever be answered again
            logger.exception("a turn failed")
            return [error] * len(batch)

    def _commit(self) -> None:
        while True:
            self._ready.wait()
            if self._stopping:
                return
            self._ready.clear()
            try:
                if self._committer.commit():
                    self.coordinator.hurry()
                    with self._arrived:
                        self._arrived.notify()
            except StoreError as error:
                # The reports are on the disk and the old state is in the database: nothing is lost by trying again.
                logger.error("a round is not committed yet: %s", error, extra={"event": "storage_failed"})
                time.sleep(_AGAIN_SECONDS)
            except Exception:  # the next round must not wait for ever
                logger.exception("a commit failed")
                time.sleep(_AGAIN_SECONDS)


def _result(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # it is the caller's
        return error


def _deliver(batch: list[_Waiting], answers: list[Any]) -> None:
    for waiting, answer in zip(batch, answers, strict=True):
        if waiting.answer.done():  # the caller has gone
            continue
        if isinstance(answer, Exception):
            waiting.answer.set_exception(answer)
        else:
            waiting.answer.set_result(answer)
