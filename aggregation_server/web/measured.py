"""Every request's duration and status, by route; and a word of those that failed.

It stands before every request, so it does little: no queue, no task, no header; a few microseconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container

from prometheus_client import CollectorRegistry, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LOG_SECONDS = 1.0  # between two lines of the same failure: a fleet asks again, and all of it


class Measured:
    """ASGI middleware.

    Args:
        app: what answers.
        paths: that are routes themselves; of others, the router says which route it is.
        registry: gets the metric ``pocketfed_request_duration_seconds``.
        clock: seconds that never go back; exchanged by tests.
    """

    def __init__(
        self,
        app: ASGIApp,
        paths: Container[str],
        registry: CollectorRegistry,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app = app
        self._paths = paths
        self._clock = clock
        self._durations = Histogram(
            "pocketfed_request_duration_seconds",
            "From a request's headers to the last byte of its answer, uploads included.",
            ("route", "status"),
            buckets=_BUCKETS,
            registry=registry,
        )
        self._observe: dict[tuple[str, int], Callable[[float], None]] = {}
        self._told: dict[tuple[str, int], tuple[float, int]] = {}  # when, and how many since then

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = self._clock()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            status = 500  # whoever stands outside answers so, and tells of the error
            raise
        finally:
            if status:  # else the server ended it, and there is nothing to say
                self._over(scope, status, begin)

    def _over(self, scope: Scope, status: int, begin: float) -> None:
        path: str = scope["path"]
        # Never just any path: callers choose it.
        route = path if path in self._paths else getattr(scope.get("route"), "path", "none")
        now = self._clock()
        observe = self._observe.get((route, status))
        if observe is None:
            observe = self._observe[route, status] = self._durations.labels(route, str(status)).observe
        observe(now - begin)
        if status >= 500:
            self._tell(route, status, now - begin, now)

    def _tell(self, route: str, status: int, seconds: float, now: float) -> None:
        when, more = self._told.get((route, status), (-_LOG_SECONDS, 0))
        if now < when + _LOG_SECONDS:
            self._told[route, status] = (when, more + 1)
            return
        self._told[route, status] = (now, 0)
        also = f", and so were {more} before it" if more else ""
        fields = {"event": "request_failed", "route": route, "status": status, "seconds": seconds, "also": more}
        logger.warning("%s answered with %d after %.3f s%s", route, status, seconds, also, extra=fields)
