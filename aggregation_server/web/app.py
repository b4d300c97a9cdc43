"""The application: all routes, and what holds for every one of them.

| answer | status |
| --- | --- |
| a caller that names nobody, or nobody that is known | 401 |
| a body that does not come in time | 408 |
| a body that is longer than any valid one | 413 |
| too many requests of one caller or address; ``Retry-After`` says when the next one is taken | 429 |
| the server is busy, or the database or the disk failed; ``Retry-After`` says when to try again | 503 |

Every answer but a file is JSON: a message of the contract or, where none fits, a `Problem`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from aggregation_server.access.enrolment import Enrolments
from aggregation_server.access.quotas import Quotas
from aggregation_server.coordination.desk import BusyError, Desk
from aggregation_server.coordination.requests import LimitedError
from aggregation_server.monitoring.figures import Observer
from aggregation_server.monitoring.metrics import registry_of
from aggregation_server.monitoring.readiness import Readiness
from aggregation_server.storage.database import StoreError
from aggregation_server.web.addresses import AddressLimits
from aggregation_server.web.answers import ProblemError, too_many
from aggregation_server.web.callers import Keys
from aggregation_server.web.description import with_callers
from aggregation_server.web.devices import DAILY, device_routes
from aggregation_server.web.direct import Direct, endpoints_of
from aggregation_server.web.measured import Measured
from aggregation_server.web.monitoring import HEALTHY, READY, monitoring_routes
from aggregation_server.web.page import page_routes
from aggregation_server.web.people import people_routes
from device_runtime import messages

_STORE_RETRY_SECONDS = "2"


def create_app(desk: Desk, enrolments: Enrolments, keys: Keys, quotas: Quotas | None = None) -> FastAPI:
    """The application; the desk works for as long as it runs."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        desk.start()
        yield
        desk.stop()

    observer = Observer(desk.coordinator, enrolments)
    registry = registry_of(desk, observer)
    # No generated pages: they load scripts from elsewhere.
    app = FastAPI(title="pocketfed", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    quotas = quotas or Quotas()
    devices = device_routes(desk, enrolments, keys, quotas)
    app.include_router(devices)
    app.include_router(people_routes(desk, enrolments, keys, observer, quotas))
    app.include_router(monitoring_routes(Readiness(desk), registry, keys))
    app.include_router(page_routes(keys))

    app.openapi = with_callers(app, {messages.ENROL, HEALTHY, READY})  # type: ignore[method-assign]

    def busy(error: BusyError) -> Response:
        return ProblemError(503, "busy", str(error), {"Retry-After": str(desk.coordinator.busy_seconds())}).answer()

    answers = _ANSWERS | {BusyError: busy}
    for kind, answer in answers.items():
        app.add_exception_handler(kind, _handler(answer))
    app.add_middleware(Direct, endpoints=endpoints_of(devices, DAILY), answers=answers)
    app.add_middleware(AddressLimits, quotas=quotas)
    # The one that is added last is the first to see a request.
    app.add_middleware(Measured, paths=DAILY, registry=registry)
    return app


def _gone(_error: ClientDisconnect) -> Response:
    # A device that drops out in the middle of its upload is daily business, and nobody reads this answer.
    return Response(status_code=400)


def _store_failed(error: StoreError) -> Response:
    return ProblemError(503, "store", str(error), {"Retry-After": _STORE_RETRY_SECONDS}).answer()


def _limited(error: LimitedError) -> Response:
    return too_many(error.seconds).answer()


_ANSWERS: dict[type[Exception], Callable[[Any], Response]] = {
    ProblemError: ProblemError.answer,
    ClientDisconnect: _gone,
    StoreError: _store_failed,
    LimitedError: _limited,
}


def _handler(answer: Callable[[Any], Response]) -> Callable[[Request, Any], Awaitable[Response]]:
    async def handle(_request: Request, error: Any) -> Response:
        return answer(error)

    return handle
