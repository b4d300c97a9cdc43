"""The coordinator over HTTP: the routes of `device_runtime.messages`, bounded bodies, status codes.

| answer | status |
| --- | --- |
| a check-in's accept, reject or complete; a configuration; an accepted report; the status | 200 |
| a part of a bundle's file or of weights (one range of bytes) | 206 |
| a check-in for another population | 404 |
| a check-in whose JSON or client's name is malformed; a refused report | 400 |
| a configuration or report without ``Authorization: Bearer TOKEN`` | 401 |
| a report that is aborted, late or abandoned | 409 |
| a body that is larger than any valid one | 413 |
| a file of a bundle, or a version of the weights, that is not there | 404 |
| a range that begins behind the end | 416 |
| the database failed; ``Retry-After`` says when to try again | 503 |

Every one of these but a file is JSON: a message of the contract or, where none fits, ``reason`` and ``message``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect

from aggregation_server.coordinator import Coordinator
from aggregation_server.ranges import asked_range
from aggregation_server.store import StoreError
from aggregation_server.validation import largest_update
from device_runtime import messages
from device_runtime.bundle import MANIFEST, MANIFEST_HASH, MANIFEST_SIGNATURE

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.05
_LARGEST_CHECK_IN = 4096
_CHECK_IN = TypeAdapter(messages.CheckIn)
_CHECK_IN_STATUS = {"population": 404, "client": 400}
_REPORT_STATUS = {"accepted": 200, "aborted": 409, "refused": 400}
_REFUSAL_STATUS = {"missing_token": 401, "too_large": 413}
_NO_TOKEN = "expected the header 'Authorization: Bearer TOKEN', with the token of the check-in"  # noqa: S105
_IMMUTABLE = {"Cache-Control": "public, max-age=31536000, immutable"}  # addressed by content
_FRESH = {"Cache-Control": "no-store"}
_STORE_RETRY_SECONDS = "2"
_BINARY = "application/octet-stream"


def create_app(coordinator: Coordinator) -> FastAPI:
    """The application; it ticks the coordinator for as long as it runs."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        ticking = asyncio.create_task(_tick(coordinator))
        yield
        ticking.cancel()
        with suppress(asyncio.CancelledError):
            await ticking

    # No generated documentation: its pages load scripts from elsewhere.
    app = FastAPI(title="pocketfed", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    largest = largest_update(coordinator.bundle.manifest.tensors)

    @app.post(messages.CHECK_IN)
    async def check_in(request: Request) -> Response:
        body = await _read_body(request, _LARGEST_CHECK_IN)
        if body is None:
            return _error(413, "too_large", f"a check-in has at most {_LARGEST_CHECK_IN} bytes")
        try:
            message = _CHECK_IN.validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "body"
            return _error(400, "malformed", f"check-in: {where}: {first['msg']}")
        reply = coordinator.check_in(message)
        return _json(reply.to_json(), _CHECK_IN_STATUS.get(reply.reason, 200))

    @app.get(messages.CONFIGURATION)
    async def configuration(request: Request) -> Response:
        token = _token(request)
        if token is None:
            return _error(401, "missing_token", _NO_TOKEN)
        holds = request.query_params.get(messages.HOLDS, "")
        return _json(coordinator.configuration(token, holds).to_json())

    @app.post(messages.REPORT)
    async def report(request: Request) -> Response:
        token = _token(request)
        if token is None:
            reply = coordinator.refuse("missing_token", _NO_TOKEN)
        elif (body := await _read_body(request, largest)) is None:
            reply = coordinator.refuse("too_large", f"an update for this model has at most {largest} bytes")
        else:
            reply = coordinator.report(token, body)
        return _json(reply.to_json(), _REFUSAL_STATUS.get(reply.reason, _REPORT_STATUS[reply.verdict]))

    @app.get(messages.bundle_path("{identity}", "{name}"))
    async def bundle_file(request: Request, identity: str, name: str) -> Response:
        path = coordinator.bundle_file(identity, name)
        if path is None or not path.is_file():
            return _error(404, "not_found", "no such file of a bundle that this server has")
        if name == MANIFEST_SIGNATURE:  # the identity does not cover it: the same bundle may be signed anew
            content = path.read_bytes()
            coordinator.downloaded(len(content))
            return Response(content, media_type=_BINARY, headers=_FRESH)
        files = coordinator.bundle.manifest.files
        hashes = {MANIFEST: identity, MANIFEST_HASH: f"{identity}-{MANIFEST_HASH}"}
        etag = f'"{files[name].sha256 if name in files else hashes[name]}"'
        size = path.stat().st_size
        asked = asked_range(request.headers, size, etag)
        coordinator.downloaded(size if asked is None else len(asked))
        # It reads the range by itself, and never all of the file at once.
        return FileResponse(path, media_type=_BINARY, headers=_IMMUTABLE | {"ETag": etag})

    @app.get(messages.LATEST_WEIGHTS)
    async def latest_weights() -> Response:
        # For people and scripts that want the fleet's result; devices are told the content hash that they need.
        return Response(coordinator.latest_weights, media_type=_BINARY, headers=_FRESH)

    @app.get(messages.weights_path("{identity}"))
    async def weights(request: Request, identity: str) -> Response:
        return content(request, identity, coordinator.weights(identity), "no such version of the weights")

    @app.get(messages.encoded_weights_path("{identity}"))
    async def encoded_weights(request: Request, identity: str) -> Response:
        return content(request, identity, coordinator.encoded_weights(identity), "no such encoded weights")

    def content(request: Request, identity: str, data: bytes | None, otherwise: str) -> Response:
        if data is None:
            return _error(404, "not_found", otherwise)
        etag = f'"{identity}"'
        asked = asked_range(request.headers, len(data), etag)
        part = data if asked is None else data[asked.start : asked.stop]
        coordinator.downloaded(len(part))
        return _part(part, asked, len(data), _IMMUTABLE | {"ETag": etag, "Accept-Ranges": "bytes"})

    @app.get(messages.STATUS)
    async def status() -> Response:
        return _json(coordinator.status())

    @app.exception_handler(ClientDisconnect)
    async def gone(_request: Request, _error: ClientDisconnect) -> Response:
        # A device that drops out in the middle of its upload is daily business, and nobody reads this answer.
        return Response(status_code=400)

    @app.exception_handler(StoreError)
    async def store_failed(_request: Request, error: StoreError) -> Response:
        answer = _error(503, "store", str(error))
        answer.headers["Retry-After"] = _STORE_RETRY_SECONDS
        return answer

    return app


async def _tick(coordinator: Coordinator) -> None:
    while True:
        await asyncio.sleep(_TICK_SECONDS)
        try:
            coordinator.tick()
        except Exception:  # the clock must go on, or no later round would ever end
            logger.exception("a tick failed")


async def _read_body(request: Request, limit: int) -> bytes | None:
    """The body, or None where it is longer than `limit` bytes; no more than that is ever held."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            return None
    return bytes(body)


def _token(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _part(part: bytes, asked: range | None, size: int, headers: dict[str, str]) -> Response:
    """The answer to a request for a part of a content of `size` bytes, or for all of it."""
    if asked is None:
        return Response(part, media_type=_BINARY, headers=headers)
    if not asked:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
    where = {"Content-Range": f"bytes {asked.start}-{asked.stop - 1}/{size}"}
    return Response(part, 206, media_type=_BINARY, headers=headers | where)


def _json(content: object, status: int = 200) -> JSONResponse:
    return JSONResponse(content, status, headers=_FRESH)


def _error(status: int, reason: str, message: str) -> JSONResponse:
    return _json({"reason": reason, "message": message}, status)
