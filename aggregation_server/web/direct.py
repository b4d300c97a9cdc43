"""A shorter way to the few calls that devices make all the time.

FastAPI goes through its routes one after the other, and through a dozen layers for what these calls do not use:
dependencies, background tasks, models of answers. It describes them, and answers whatever else is asked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

Endpoint = Callable[[Request], Awaitable[Response]]


class Direct:
    """ASGI middleware that calls the endpoints of some routes itself.

    Args:
        app: answers all other requests.
        endpoints: by method and path.
        answers: by the type of an exception, what a caller is answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        endpoints: Mapping[tuple[str, str], Endpoint],
        answers: Mapping[type[Exception], Callable[[Any], Response]],
    ) -> None:
        self._app = app
        self._endpoints = endpoints
        self._answers = dict(answers)
        self._known = tuple(answers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        try:
            response = await endpoint(Request(scope, receive))
        except self._known as error:
            response = next(self._answers[kind] for kind in type(error).__mro__ if kind in self._answers)(error)
        await response(scope, receive, send)


def endpoints_of(router: APIRouter, paths: Container[str]) -> dict[tuple[str, str], Endpoint]:
    """The endpoints at these paths, each of which takes the request and nothing else."""
    return {
        (method, route.path): route.endpoint
        for route in router.routes
        if isinstance(route, APIRoute) and route.path in paths
        for method in route.methods or ()
    }
