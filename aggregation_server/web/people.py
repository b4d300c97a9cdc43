"""The calls of the people who run the fleet: what it does, and what it is told to do.

A viewer may look; what changes the fleet is the operator's alone. Calls that change something have a JSON body, which
no other site's form can send in a browser's name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from aggregation_server.access.enrolment import Enrolments
from aggregation_server.access.quotas import Quotas
from aggregation_server.coordination.desk import Desk
from aggregation_server.coordination.operations import Operations
from aggregation_server.monitoring.figures import Observer
from aggregation_server.monitoring.status import status_of
from aggregation_server.web.answers import ProblemError, json_answer, problems
from aggregation_server.web.bodies import read_message
from aggregation_server.web.callers import Keys, require_role
from aggregation_server.web.paths import CODES, DEVICES, PAUSE, RELEASE, RESUME, REVOKE, ROLLBACK, ROUNDS
from device_runtime import messages
from device_runtime.errors import InputError

logger = logging.getLogger(__name__)

_MOST_ROUNDS = 1000
_MOST_DEVICES = 10_000
_LARGEST_ID = 2**31 - 1
_Default = TypeVar("_Default", int, None)


@dataclass(frozen=True)
class Nothing:
    """The body of a call that needs no more said: ``{}``."""


@dataclass(frozen=True)
class VersionNumber:
    """A version of the weights."""

    version: int


@dataclass(frozen=True)
class CodesWanted:
    """How many enrolment codes, for how long, and where `client` is given for whom."""

    count: int = 1
    hours: float = 24.0
    client: str | None = None


@dataclass(frozen=True)
class DeviceName:
    """A device."""

    client: str


def people_routes(desk: Desk, enrolments: Enrolments, keys: Keys, observer: Observer, quotas: Quotas) -> APIRouter:
    """The routes, each for a role."""
    router = APIRouter(tags=["people"])
    operations = Operations(desk.coordinator)
    looking = problems(400, 401, 429, 503)

    @router.get(messages.STATUS, responses={200: {"model": dict[str, Any]}, **looking}, openapi_extra=_HISTORY)
    async def status(request: Request) -> Response:
        require_role(request, keys, "viewer")
        history = _number(request, "history", 100, 0, _MOST_ROUNDS)
        return json_answer(await run_in_threadpool(status_of, observer, history))

    @router.get(ROUNDS, responses={200: {"model": list[dict[str, Any]]}, **looking}, openapi_extra=_PAGING)
    async def rounds(request: Request) -> Response:
        require_role(request, keys, "viewer")
        limit = _number(request, "limit", 100, 1, _MOST_ROUNDS)
        before = _number(request, "before", None, 1, _LARGEST_ID)
        records = await run_in_threadpool(desk.coordinator.store.history, limit, before)
        return json_answer([record.to_json() for record in records])

    @router.get(DEVICES, responses={200: {"model": list[dict[str, Any]]}, **looking}, openapi_extra=_AFTER)
    async def devices(request: Request) -> Response:
        require_role(request, keys, "viewer")
        limit = _number(request, "limit", 1000, 1, _MOST_DEVICES)
        after = request.query_params.get("after", "")
        if after and not re.fullmatch(messages.CLIENT_NAME, after):
            raise ProblemError(400, "malformed", "after: expected the name of a device")
        records = await run_in_threadpool(enrolments.devices, limit, after)
        return json_answer([asdict(record) for record in records])

    def operation(path: str, kind: type[Any], call: Callable[[Any], object]) -> None:
        adapter = TypeAdapter(kind)
        name = path.rpartition("/")[2]

        @router.post(
            path,
            name=name,
            responses={200: {"model": dict[str, Any]}, **problems(400, 401, 403, 408, 409, 413, 415, 429, 503)},
            openapi_extra={
                "requestBody": {"required": True, "content": {"application/json": {"schema": adapter.json_schema()}}}
            },
        )
        async def called(request: Request) -> Response:
            require_role(request, keys, "operator")
            if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                raise ProblemError(415, "not_json", "expected a body with Content-Type: application/json")
            message = await read_message(request, adapter, quotas.slow_seconds, "a body here")
            try:
                answer = await desk.run(lambda: call(message)) or {}
            except InputError as error:
                raise ProblemError(409, "impossible", str(error)) from None
            said = asdict(message)
            details = "".join(f", {name} {value}" for name, value in said.items() if value is not None)
            logger.info("operator: %s%s", name, details, extra={"event": "operation", "operation": name, **said})
            return json_answer(answer)

    operation(PAUSE, Nothing, lambda _: operations.pause())
    operation(RESUME, Nothing, lambda _: operations.resume())
    operation(ROLLBACK, VersionNumber, lambda wanted: operations.rollback(wanted.version).to_json())
    operation(RELEASE, VersionNumber, lambda wanted: {"weights": operations.release(wanted.version)})
    operation(
        CODES,
        CodesWanted,
        lambda wanted: {"codes": enrolments.new_codes(wanted.count, wanted.hours, wanted.client)},
    )
    operation(REVOKE, DeviceName, lambda device: enrolments.revoke(device.client))
    return router


def _number(request: Request, name: str, otherwise: _Default, least: int, most: int) -> int | _Default:
    text = request.query_params.get(name)
    if text is None:
        return otherwise
    if not (text.isascii() and text.isdecimal() and len(text) < 12 and least <= int(text) <= most):
        raise ProblemError(400, "malformed", f"{name}: expected a whole number from {least} to {most}")
    return int(text)


def _parameter(name: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _whole(name: str, least: int, most: int) -> dict[str, Any]:
    return _parameter(name, type="integer", minimum=least, maximum=most)


_HISTORY = {"parameters": [_whole("history", 0, _MOST_ROUNDS)]}
_PAGING = {"parameters": [_whole("limit", 1, _MOST_ROUNDS), _whole("before", 1, _LARGEST_ID)]}
_NAME = _parameter("after", type="string", pattern=f"^({messages.CLIENT_NAME})?$")
_AFTER = {"parameters": [_whole("limit", 1, _MOST_DEVICES), _NAME]}
