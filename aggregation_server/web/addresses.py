"""Requests of one address: so many a second, and fewer of those that are refused for who they come from.

It stands before all that a request costs. What a device may ask for is counted elsewhere, when it has proved its name:
nobody uses up what is another's (`aggregation_server.coordination.turn`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address, ip_address
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aggregation_server.access.quotas import Quotas, rate_limits
from aggregation_server.web.answers import too_many

logger = logging.getLogger(__name__)

_REFUSED = (401, 403)
_NETWORK = 64  # bits of an IPv6 address that are one customer's; the others are of his own choosing
_FORWARDED = b"x-forwarded-for"


class AddressLimits:
    """ASGI middleware.

    Args:
        app: what answers the requests that are taken.
        quotas: how many are.
        clock: seconds that never go back.
    """

    def __init__(self, app: ASGIApp, quotas: Quotas, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._requests = rate_limits(quotas.address_rate)
        self._failures = rate_limits(quotas.failure_rate)
        self._clock = clock
        self._forwarded = bool(quotas.trusted_proxies)  # or somebody was told of the option already

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._tell(scope)
        address = address_of(scope)
        wait = self._wait(address)
        if wait > 0:
            await too_many(wait).answer()(scope, receive, send)
            return

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in _REFUSED:
                self._failed(address)
            await send(message)

        await self._app(scope, receive, watched)

    def _wait(self, address: str) -> float:
        now = self._clock()
        wait = 0.0 if self._failures is None else self._failures.wait(address, now)
        return wait if wait > 0 or self._requests is None else self._requests.take(address, now)

    def _failed(self, address: str) -> None:
        if self._failures is not None:
            self._failures.take(address, self._clock())

    def _tell(self, scope: Scope) -> None:
        if not self._forwarded and any(name == _FORWARDED for name, _ in scope["headers"]):
            self._forwarded = True
            logger.warning(
                "requests from %s carry X-Forwarded-For: if a proxy of yours is there, name it with --trusted-proxy, or"
                " all devices behind it share one address's limits",
                (scope.get("client") or ("?",))[0],
            )


def address_of(scope: Mapping[str, Any]) -> str:
    """What stands for a request's sender: its IPv4 address, or the network of its IPv6 address."""
    host = str((scope.get("client") or ("",))[0])
    if ":" not in host:
        return host
    try:
        address = ip_address(host)
    except ValueError:  # a proxy's own word
        return host
    if not isinstance(address, IPv6Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Address(int(address) >> (128 - _NETWORK) << (128 - _NETWORK)))
