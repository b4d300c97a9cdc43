"""Answers that several routes give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

BINARY = "application/octet-stream"
FRESH = {"Cache-Control": "no-store"}
IMMUTABLE = {"Cache-Control": "public, max-age=31536000, immutable"}  # addressed by content


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


def json_answer(content: object, status: int = 200) -> Response:
    """A fresh answer."""
    return Response(to_json(content), status, FRESH, "application/json")


def part_answer(part: bytes, asked: range | None, size: int, headers: dict[str, str]) -> Response:
    """The answer to a request for a part of a content of `size` bytes, or for all of it."""
    if asked is None:
        return Response(part, media_type=BINARY, headers=headers)
    if not asked:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
    where = {"Content-Range": f"bytes {asked.start}-{asked.stop - 1}/{size}"}
    return Response(part, 206, media_type=BINARY, headers=headers | where)


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
