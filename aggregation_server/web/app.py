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

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from aggregation_server.database import StoreError
from aggregation_server.desk import BusyError, Desk
from aggregation_server.enrolment import Enrolments
from aggregation_server.web.answers import ProblemError, json_answer
from aggregation_server.web.callers import Keys
from aggregation_server.web.devices import device_routes
from aggregation_server.web.people import people_routes

_STORE_RETRY_SECONDS = "2"
_BUSY_RETRY_SECONDS = "10"


def create_app(desk: Desk, enrolments: Enrolments, keys: Keys) -> FastAPI:
    """The application; the desk works for as long as it runs."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        desk.start()
        yield
        desk.stop()

    # No generated pages: they load scripts from elsewhere.
    app = FastAPI(title="pocketfed", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.include_router(device_routes(desk, enrolments, keys))
    app.include_router(people_routes(desk, enrolments, keys))

    @app.get("/healthz", responses={200: {"model": dict[str, str]}})
    async def healthy() -> Response:
        return json_answer({"status": "alive"})

    @app.exception_handler(ProblemError)
    async def problem(_request: Request, error: ProblemError) -> Response:
        return error.answer()

    @app.exception_handler(ClientDisconnect)
    async def gone(_request: Request, _error: ClientDisconnect) -> Response:
        # A device that drops out in the middle of its upload is daily business, and nobody reads this answer.
        return Response(status_code=400)

    @app.exception_handler(StoreError)
    async def store_failed(_request: Request, error: StoreError) -> Response:
        return ProblemError(503, "store", str(error), {"Retry-After": _STORE_RETRY_SECONDS}).answer()

    @app.exception_handler(BusyError)
    async def busy(_request: Request, error: BusyError) -> Response:
        return ProblemError(503, "busy", str(error), {"Retry-After": _BUSY_RETRY_SECONDS}).answer()

    return app
