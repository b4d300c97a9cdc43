"""The description of the calls for programs (OpenAPI, at ``/openapi.json``), with who may make them."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from fastapi import FastAPI

_SCHEME = "basic"
_SCHEMES = {
    _SCHEME: {
        "type": "http",
        "scheme": "basic",
        "description": "a device's name and secret; or 'operator' or 'viewer', and that key",
    }
}


def with_callers(app: FastAPI, for_everybody: Container[str]) -> Callable[[], dict[str, Any]]:
    """The application's `openapi`, which names its callers' scheme for all paths but those `for_everybody`.

    The routes ask for the header themselves, in less time than FastAPI's dependencies, which would describe it.
    """
    describe = app.openapi

    def described() -> dict[str, Any]:
        schema = describe()  # made once: what is added here is added to it
        schema["components"]["securitySchemes"] = _SCHEMES
        for path, operations in schema["paths"].items():
            if path not in for_everybody:
                for operation in operations.values():
                    operation["security"] = [{_SCHEME: []}]
        return schema

    return described
