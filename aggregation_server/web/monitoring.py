"""What programs ask of a server: whether it lives, whether it is ready, and its metrics."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from aggregation_server.monitoring.readiness import Readiness
from aggregation_server.web.answers import FRESH, json_answer, problems
from aggregation_server.web.callers import Keys, require_role

METRICS = "/metrics"
HEALTHY = "/healthz"
READY = "/readyz"


def monitoring_routes(readiness: Readiness, registry: CollectorRegistry, keys: Keys) -> APIRouter:
    """The routes; `HEALTHY` and `READY` are for everybody."""
    router = APIRouter(tags=["monitoring"])

    @router.get(HEALTHY, responses={200: {"model": dict[str, str]}, **problems(429)})
    async def healthy() -> Response:
        return json_answer({"status": "alive"})

    not_ready = _READINESS | {"description": "not ready; reasons says why"}

    @router.get(READY, responses={200: _READINESS, **problems(429), 503: not_ready})
    async def ready() -> Response:
        reasons = await readiness.reasons()
        return json_answer({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    @router.get(
        METRICS,
        response_class=Response,
        responses={200: {"description": "metrics", "content": {"text/plain": {}}}, **problems(401, 429)},
    )
    async def metrics(request: Request) -> Response:
        require_role(request, keys, "viewer")
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(await run_in_threadpool(encode, registry), headers=FRESH | {"Content-Type": kind})

    return router


_READINESS = {
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["ready", "reasons"],
                "properties": {
                    "ready": {"type": "boolean"},
                    "reasons": {"type": "array", "items": {"type": "string"}},
                },
            }
        }
    }
}
