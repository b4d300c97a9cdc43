"""Answers that several routes give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

BINARY = "application/octet-stream"
FRESH = {"Cache-Control": "no-store"}
IMMUTABLE = {"Cache-Control": "public, max-age=31536000, immutable"}  # addressed by content
_CHUNK = 256 << 10


@dataclass(frozen=True)
class Problem:
    """The JSON of an answer that is no message of the contract.

    Attributes:
        reason: a short, fixed word.
        message: the same for a person to read.
    """

    reason: str
    message: str


class ProblemError(Exception):
    """A request that is answered with a problem.

    Args:
        status: of the answer.
        reason, message: of the `Problem`.
        headers: of the answer.
    """

    def __init__(self, status: int, reason: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.problem = Problem(reason, message)
        self.headers = headers or {}

    def answer(self) -> Response:
        return Response(to_json(self.problem), self.status, FRESH | self.headers, "application/json")


class ContentResponse(Response):
    """A file's bytes. They go out in chunks, each when its reader is ready for it, so that a slow one costs no copy."""

    media_type = BINARY

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        size = len(self.body)
        for start in range(0, max(size, 1), _CHUNK):
            stop = start + _CHUNK
            await send({"type": "http.response.body", "body": self.body[start:stop], "more_body": stop < size})


def too_many(seconds: float) -> ProblemError:
    """The answer to somebody who has asked for more than a fair share; `seconds` until the next request is taken."""
    whole = math.ceil(seconds)
    message = f"too many requests: the next one is taken in {whole} s"
    return ProblemError(429, "too_many_requests", message, {"Retry-After": str(whole)})


def json_answer(content: object, status: int = 200) -> Response:
    """A fresh answer."""
    return Response(to_json(content), status, FRESH, "application/json")


def part_answer(part: bytes, asked: range | None, size: int, headers: dict[str, str]) -> Response:
    """The answer to a request for a part of a content of `size` bytes, or for all of it."""
    if asked is None:
        return ContentResponse(part, headers=headers)
    if not asked:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
    where = {"Content-Range": f"bytes {asked.start}-{asked.stop - 1}/{size}"}
    return ContentResponse(part, 206, headers | where)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the description of a route: the statuses that are answered with a problem."""
    return {status: {"model": Problem, "description": _MEANINGS[status]} for status in statuses}


_MEANINGS = {
    400: "malformed",
    401: "the caller is not known, or its secret is another",
    403: "the caller may not do this",
    404: "not there",
    408: "the body did not come in time",
    409: "it can't be done now",
    413: "the body is longer than any that is valid",
    415: "the body is not JSON",
    416: "the range begins behind the end",
    429: "too many requests; Retry-After says when the next one is taken",
    503: "the server is busy, or its disk or database failed; Retry-After says when to try again",
}
