"""The calls of devices: the routes of `device_runtime.messages`.

| answer | status |
| --- | --- |
| an enrolment; a check-in's accept, reject or complete; a configuration; an accepted report | 200 |
| a part of a bundle's file or of weights (one range of bytes) | 206 |
| a check-in for another population | 404 |
| malformed JSON; a check-in under another name than the caller's; a refused report | 400 |
| a caller that is not enrolled, or revoked; a report or a configuration without a token | 401 |
| a refused enrolment | 403 |
| a file of a bundle, or a version of the weights, that is not there | 404 |
| a report that is aborted: late, or its round was abandoned | 409 |

`aggregation_server.web.app` has what holds for every route.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from aggregation_server.access.enrolment import Enrolments
from aggregation_server.access.quotas import Quotas
from aggregation_server.aggregation.validation import largest_update
from aggregation_server.coordination.desk import Desk
from aggregation_server.coordination.requests import (
    Admission,
    Caller,
    CheckInRequest,
    ConfigurationRequest,
    DeniedError,
    ReportRequest,
)
from aggregation_server.rounds import UNKNOWN_TOKEN
from aggregation_server.web.answers import (
    BINARY,
    FRESH,
    IMMUTABLE,
    ContentResponse,
    ProblemError,
    json_answer,
    part_answer,
    problems,
)
from aggregation_server.web.bodies import LARGEST_MESSAGE, Memory, Readings, declared_length, read_body, read_message
from aggregation_server.web.callers import Keys, caller_of, is_person, unknown_caller
from aggregation_server.web.ranges import asked_range
from device_runtime import messages
from device_runtime.bundle import MANIFEST, MANIFEST_HASH, MANIFEST_SIGNATURE

DAILY = frozenset({messages.CHECK_IN, messages.CONFIGURATION, messages.REPORT})
"""Paths of the calls that all devices make in every round."""
_UPLOADS = 64 << 20  # bytes of reports that are in memory at once
_READS = 4  # of weights in the database, at once: others need its connections, and threads, too
_CHECK_IN = TypeAdapter(messages.CheckIn)
_ENROLMENT = TypeAdapter(messages.Enrolment)
_CHECK_IN_STATUS = {"population": 404, "client": 400}
_REPORT_STATUS = {"accepted": 200, "aborted": 409, "refused": 400}
_REFUSAL_STATUS = {"missing_token": 401, "too_large": 413}
_NO_TOKEN = f"expected the header '{messages.TOKEN}: TOKEN', with the token of the check-in"


def device_routes(desk: Desk, enrolments: Enrolments, keys: Keys, quotas: Quotas) -> APIRouter:
    """The routes, for callers that are enrolled."""
    router = APIRouter(tags=["devices"])
    coordinator = desk.coordinator
    largest = max(largest_update(coordinator.bundle.manifest.tensors), LARGEST_MESSAGE)
    uploads = Memory(_UPLOADS)
    readings = Readings()
    reads = asyncio.Semaphore(_READS)

    async def admit(request: Request) -> None:
        """Let pass a device, or a person."""
        caller = caller_of(request)
        if keys.role(caller) is not None:
            return
        if is_person(caller):
            raise unknown_caller()
        await _asked(desk, caller, Admission(caller))

    @router.post(
        messages.ENROL,
        responses={
            200: {"model": messages.EnrolmentReply},
            403: {"model": messages.EnrolmentReply},
            **problems(400, 408, 413, 429, 503),
        },
        openapi_extra=_json_body(_ENROLMENT),
    )
    async def enrol(request: Request) -> Response:
        message = await read_message(request, _ENROLMENT, quotas.slow_seconds, "an enrolment", "enrolment: ")
        reply = await desk.run(lambda: enrolments.enrol(message))
        return json_answer(reply.to_json(), 200 if reply.verdict == "enrolled" else 403)

    @router.post(
        messages.CHECK_IN,
        responses={
            200: {"model": messages.CheckInReply},
            404: {"model": messages.CheckInReply},
            **problems(400, 401, 403, 408, 413, 429, 503),
        },
        openapi_extra=_json_body(_CHECK_IN),
    )
    async def check_in(request: Request) -> Response:
        caller = caller_of(request)
        message = await read_message(request, _CHECK_IN, quotas.slow_seconds, "a check-in", "check-in: ")
        reply = await _asked(desk, caller, CheckInRequest(caller, message))
        return json_answer(reply.to_json(), _CHECK_IN_STATUS.get(reply.reason, 200))

    @router.get(
        messages.CONFIGURATION,
        responses={200: {"model": messages.Configuration}, **problems(401, 403, 429, 503)},
        openapi_extra={"parameters": [_TOKEN_HEADER, _HOLDS]},
    )
    async def configuration(request: Request) -> Response:
        caller = caller_of(request)
        token = request.headers.get(messages.TOKEN)
        if not token:
            raise ProblemError(401, "missing_token", _NO_TOKEN)
        holds = request.query_params.get(messages.HOLDS, "")
        reply = await _asked(desk, caller, ConfigurationRequest(caller, token, holds))
        return json_answer(reply.to_json())

    @router.post(
        messages.REPORT,
        responses={
            **{status: {"model": messages.ReportReply} for status in (200, 400, 409, 413)},
            **problems(401, 403, 408, 429, 503),
        },
        openapi_extra={
            "parameters": [_TOKEN_HEADER],
            "requestBody": {"required": True, "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}},
        },
    )
    async def report(request: Request) -> Response:
        caller = caller_of(request)
        token = request.headers.get(messages.TOKEN)
        if not token:
            return _reported(coordinator.refuse("missing_token", _NO_TOKEN))
        # Whoever holds no token of ours is not listened to: it costs no memory, and no question to the database.
        if coordinator.ticket(token, caller.name) is None:
            await _asked(desk, caller, Admission(caller))
            return _reported(coordinator.refuse(UNKNOWN_TOKEN.reason, UNKNOWN_TOKEN.message))
        async with uploads.taken(min(declared_length(request, largest), largest)):
            body = await read_body(request, largest, quotas.slow_seconds, readings, caller.name)
            if body is None:
                message = f"an update for this model has at most {largest} bytes"
                return _reported(coordinator.refuse("too_large", message))
            return _reported(await _asked(desk, caller, ReportRequest(caller, token, body)))

    @router.get(
        messages.bundle_path("{identity}", "{name}"),
        responses=_CONTENT | problems(401, 404, 429, 503),
    )
    async def bundle_file(request: Request, identity: str, name: str) -> Response:
        await admit(request)
        bundle = coordinator.bundle
        files = bundle.manifest.files
        if identity != bundle.identity or name not in {*files, MANIFEST, MANIFEST_HASH, MANIFEST_SIGNATURE}:
            raise ProblemError(404, "not_found", "no such file of a bundle that this server has")
        path = bundle.file(name)
        if not path.is_file():  # not every bundle is signed
            raise ProblemError(404, "not_found", "no such file of a bundle that this server has")
        if name == MANIFEST_SIGNATURE:  # the identity does not cover it: the same bundle may be signed anew
            content = path.read_bytes()
            coordinator.downloaded(len(content))
            return Response(content, media_type=BINARY, headers=FRESH)
        hashes = {MANIFEST: identity, MANIFEST_HASH: f"{identity}-{MANIFEST_HASH}"}
        etag = f'"{files[name].sha256 if name in files else hashes[name]}"'
        size = path.stat().st_size
        asked = asked_range(request.headers, size, etag)
        coordinator.downloaded(size if asked is None else len(asked))
        # It reads the range by itself, and never all of the file at once.
        return FileResponse(path, media_type=BINARY, headers=IMMUTABLE | {"ETag": etag})

    @router.get(messages.LATEST_WEIGHTS, responses=_CONTENT | problems(401, 429, 503))
    async def latest_weights(request: Request) -> Response:
        # For people and scripts that want the fleet's result; devices are told the content hash that they need.
        await admit(request)
        return ContentResponse(coordinator.state.data, headers=FRESH)

    @router.get(messages.weights_path("{identity}"), responses=_CONTENT | problems(401, 404, 429, 503))
    async def weights(request: Request, identity: str) -> Response:
        await admit(request)
        data = coordinator.weights_at_hand(identity) or await stored(coordinator.weights, identity)
        return content(request, identity, data, "no such version of the weights")

    @router.get(messages.encoded_weights_path("{identity}"), responses=_CONTENT | problems(401, 404, 429, 503))
    async def encoded_weights(request: Request, identity: str) -> Response:
        await admit(request)
        data = coordinator.downlink.encoded(identity) or await stored(coordinator.encoded_weights, identity)
        return content(request, identity, data, "no such encoded weights")

    async def stored(read: Callable[[str], bytes | None], identity: str) -> bytes | None:
        """What may be in the database, read in another thread: the event loop does not wait for it."""
        async with reads:
            return await run_in_threadpool(read, identity)

    def content(request: Request, identity: str, data: bytes | None, otherwise: str) -> Response:
        if data is None:
            raise ProblemError(404, "not_found", otherwise)
        etag = f'"{identity}"'
        asked = asked_range(request.headers, len(data), etag)
        part = data if asked is None else data[asked.start : asked.stop]
        coordinator.downloaded(len(part))
        return part_answer(part, asked, len(data), IMMUTABLE | {"ETag": etag, "Accept-Ranges": "bytes"})

    return router


async def _asked(desk: Desk, caller: Caller, request: Any) -> Any:
    """The desk's answer to a device.

    Raises:
        ProblemError: it is not enrolled, or revoked (status 401).
    """
    if is_person(caller):
        raise ProblemError(403, "devices_only", "only a device may do this: call with a name that is enrolled")
    try:
        return await desk.ask(request)
    except DeniedError:
        raise unknown_caller() from None


def _reported(reply: messages.ReportReply) -> Response:
    return json_answer(reply.to_json(), _REFUSAL_STATUS.get(reply.reason, _REPORT_STATUS[reply.verdict]))


def _json_body(kind: TypeAdapter[Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": kind.json_schema()}}}}


_TOKEN_HEADER = {"name": messages.TOKEN, "in": "header", "required": True, "schema": {"type": "string"}}
_HOLDS = {"name": messages.HOLDS, "in": "query", "required": False, "schema": {"type": "string"}}
_FILE = {"content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}}
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "all of it", **_FILE},
    206: {"description": "the range that was asked for", **_FILE},
    416: {"description": "the range begins behind the end"},
}
