"""`Readiness`: whether a server can take requests now, for a load balancer or a supervisor that asks."""

from __future__ import annotations

import asyncio
import logging
import time

from starlette.concurrency import run_in_threadpool

from aggregation_server.coordination.desk import Desk
from aggregation_server.storage.database import StoreError

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 3.0
_HOLDS_SECONDS = 1.0  # whoever asks more often is given the same answer: it costs no flush of the disk


class Readiness:
    """Looks at what requests depend on; to be used from one event loop.

    Args:
        desk: of the server.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._looking: asyncio.Task[list[str]] | None = None
        self._looked = -_HOLDS_SECONDS
        self._said: list[str] = []

    async def reasons(self) -> list[str]:
        """Why the server should be given no requests; empty where it is ready. Names no file and no host."""
        desk = [] if self._desk.open else ["requests: too many wait, or the server is ending"]
        return desk + await self._storage()

    async def _storage(self) -> list[str]:
        if self._looking is None or (self._looking.done() and time.monotonic() >= self._looked + _HOLDS_SECONDS):
            self._looked = time.monotonic()
            self._looking = asyncio.create_task(run_in_threadpool(self._look))
        done, _ = await asyncio.wait([self._looking], timeout=_PATIENCE_SECONDS)
        if not done:
            return [f"storage: the database or the disk did not answer within {_PATIENCE_SECONDS:g} seconds"]
        reasons = self._looking.result()
        if reasons != self._said:
            self._said = reasons
            logger.log(
                logging.WARNING if reasons else logging.INFO,
                "not ready: %s" if reasons else "ready again%s",
                "; ".join(reasons),
                extra={"event": "readiness", "ready": not reasons, "reasons": reasons},
            )
        return reasons

    def _look(self) -> list[str]:
        coordinator, reasons = self._desk.coordinator, []
        try:
            coordinator.store.fleet()
        except StoreError:
            reasons.append("database: it does not answer")
        try:
            coordinator.spool.probe()
        except StoreError:
            reasons.append("spool: it can't be written to")
        return reasons
