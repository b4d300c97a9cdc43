"""The shorter way of devices' daily calls, and what they do not write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from aggregation_server.rounds import RoundConfig
from aggregation_server.web.direct import Direct, endpoints_of
from tests.aggregation_server.fleet import Fleet


class _SpecialError(ValueError):
    pass


async def _call(app: Direct, method: str, path: str, kind: str = "http") -> tuple[int, bytes]:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": kind, "method": method, "path": path, "headers": [], "query_string": b""}, receive, send)
    return sent[0]["status"], sent[1]["body"]


def _direct() -> Direct:
    router = APIRouter()

    @router.post("/daily")
    async def daily(_request: Request) -> Response:
        return PlainTextResponse("daily")

    @router.get("/daily")
    async def fails(_request: Request) -> Response:
        raise _SpecialError("special")

    @router.put("/daily")
    async def breaks(_request: Request) -> Response:
        raise KeyError("nobody expects it")

    @router.post("/seldom")
    async def seldom(_request: Request) -> Response:
        return PlainTextResponse("seldom")

    async def otherwise(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("otherwise", 404)(scope, receive, send)

    answers: dict[type[Exception], Callable[[Any], Response]] = {
        ValueError: lambda error: PlainTextResponse(f"answer to {error}", 400)
    }
    return Direct(otherwise, endpoints_of(router, {"/daily"}), answers)


def test_only_daily_calls_take_the_shorter_way() -> None:
    app = _direct()
    assert asyncio.run(_call(app, "POST", "/daily")) == (200, b"daily")
    for method, path in (("POST", "/seldom"), ("DELETE", "/daily"), ("POST", "/daily/")):
        assert asyncio.run(_call(app, method, path)) == (404, b"otherwise")


def test_errors_are_answered_by_their_kind_and_others_are_the_outer_layers() -> None:
    app = _direct()
    assert asyncio.run(_call(app, "GET", "/daily")) == (400, b"answer to special")
    with pytest.raises(KeyError, match="nobody expects it"):
        asyncio.run(_call(app, "PUT", "/daily"))


def test_a_turn_that_changes_nothing_writes_the_clock_alone_and_that_once_a_second(
    make_fleet: Callable[..., Fleet],
) -> None:
    fleet = make_fleet(goal_count=2, over_selection=1)
    fleet.join("a", "b")
    before = fleet.store.fleet().clock
    fleet.now[0] += 0.5
    assert fleet.configuration("a").state == "start"
    assert fleet.store.fleet().clock == before
    fleet.now[0] += 0.75
    assert fleet.configuration("a").state == "start"
    assert fleet.store.fleet().clock == before + 1.25
    fleet.now[0] += 0.25
    fleet.report("a")  # it changes the round: the time is written with it
    assert fleet.store.fleet().clock == before + 1.5


def test_all_of_the_daily_calls_are_described(start_server: Callable[..., Any]) -> None:
    paths = start_server(RoundConfig(1)).nobody.get("/openapi.json").json()["paths"]
    assert {"/v1/check-in", "/v1/configuration", "/v1/report"} <= set(paths)
