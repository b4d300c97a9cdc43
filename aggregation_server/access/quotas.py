"""`Quotas`: how much one address, one device or one connection may ask of a server."""

from __future__ import annotations

import math
from dataclasses import dataclass
from ipaddress import ip_network

from aggregation_server.access.limits import RateLimits
from device_runtime.errors import InputError

_BURST_SECONDS = 10.0


@dataclass(frozen=True)
class Quotas:
    """What a server takes from its callers. Ten seconds' worth of a rate is taken at once.

    Attributes:
        address_rate: requests a second of one address, which may be that of many devices behind one router; 0 is no
            limit.
        device_rate: requests a second of one enrolled device.
        failure_rate: requests a second of one address that are answered 401 or 403. An address that has used them up is
            not listened to until it has some again.
        connections: that are open at once.
        idle_seconds: that a connection may take from its beginning, or its last answer, until the next request's
            headers are complete.
        slow_seconds: that a body may take, besides what its bytes take on a slow line; that a reader of an answer may
            let go by without reading; and that the handshake of TLS may take.
        trusted_proxies: addresses or networks of proxies, whose word on a request's address is taken
            (``X-Forwarded-For``).

    Raises:
        InputError: a figure or an address that can't be.
    """

    address_rate: float = 200.0
    device_rate: float = 20.0
    failure_rate: float = 2.0
    connections: int = 10_000
    idle_seconds: float = 75.0
    slow_seconds: float = 20.0
    trusted_proxies: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option, rate in (
            ("--address-rate", self.address_rate),
            ("--device-rate", self.device_rate),
            ("--failure-rate", self.failure_rate),
        ):
            if rate != 0 and not 1 / _BURST_SECONDS <= rate < math.inf:
                least = f"at least {1 / _BURST_SECONDS:g} requests a second"
                raise InputError(f"{option}: should be {least}, or 0 for no limit, not {rate:g}")
        for option, seconds in (("--idle-seconds", self.idle_seconds), ("--slow-seconds", self.slow_seconds)):
            if not 0 < seconds < math.inf:
                raise InputError(f"{option}: should be above 0, not {seconds:g}")
        if self.connections < 1:
            raise InputError(f"--connections: should be at least 1, not {self.connections}")
        for proxy in self.trusted_proxies:
            try:
                ip_network(proxy)
            except ValueError:
                raise InputError(
                    f"--trusted-proxy: {proxy!r} is no address or network, such as 127.0.0.1 or 10.0.0.0/24"
                ) from None


def rate_limits(rate: float) -> RateLimits | None:
    """Limits by key; None where the rate is 0."""
    return RateLimits(rate, rate * _BURST_SECONDS) if rate else None
