"""Which workers to compute on, as the command line says it; without TensorFlow Federated."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

from device_runtime.errors import InputError, NetworkError

_FORM = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.%\w]+)\]|(?P<name>[\w.-]+)):(?P<port>[0-9]{1,5})", re.ASCII)


@dataclass(frozen=True)
class Address:
    """A host, by name or by number, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Workers:
    """Workers on other machines, and how long to wait for them.

    Attributes:
        addresses: where ``pocketfed worker`` listens.
        silence: seconds without any answer until a worker is taken for lost; also the time to connect.
        limit: seconds that a worker may take for its share of a round; None for as long as it answers otherwise.

    Raises:
        InputError: there are no addresses, or texts in their place; or a number of seconds is not above 0.
    """

    addresses: tuple[Address, ...]
    silence: float = 30.0
    limit: float | None = None

    def __post_init__(self) -> None:
        if not self.addresses or not all(isinstance(address, Address) for address in self.addresses):
            raise InputError(
                "workers should be addresses, at least one, as parse_addresses('10.0.0.2:8000,10.0.0.3:8000') gives"
                f" them, not {self.addresses!r}"
            )
        for name, seconds in (("silence", self.silence), ("limit", self.limit)):
            if seconds is not None and not seconds > 0:
                raise InputError(f"workers: {name} should be a number of seconds above 0, not {seconds!r}")


def parse_address(text: str) -> Address:
    """HOST:PORT, with an IPv6 address in brackets.

    Raises:
        InputError: it is none.
    """
    match = _FORM.fullmatch(text)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise InputError(f"worker {text!r} should be HOST:PORT, such as 10.0.0.2:8000 or [fd00::2]:8000")
    return Address(match["ipv6"] or match["name"], int(match["port"]))


def parse_addresses(text: str) -> tuple[Address, ...]:
    """HOST:PORT,HOST:PORT,…

    Raises:
        InputError: one of them is none, or one stands there twice.
    """
    addresses = tuple(parse_address(part.strip()) for part in text.split(","))
    for address in addresses:
        if addresses.count(address) > 1:
            raise InputError(f"worker {address} is named twice; name each once")
    return addresses


def require_reachable(addresses: tuple[Address, ...], timeout: float) -> None:
    """Connect to each and hang up.

    Raises:
        InputError: two of them lead to the same socket.
        NetworkError: a name is unknown, or nothing listens there.
    """
    peers: dict[object, Address] = {}
    for address in addresses:
        try:
            with socket.create_connection((address.host, address.port), timeout) as connection:
                peer = connection.getpeername()[:2]
        except socket.gaierror as error:
            raise NetworkError(f"worker {address}: the host is unknown ({error.strerror})") from error
        except OSError as error:
            reason = error.strerror or f"no answer within {timeout:g} s"
            raise NetworkError(
                f"worker {address} can't be reached ({reason}); is 'pocketfed worker' running there, with --bind?"
            ) from error
        if peer in peers:
            raise InputError(f"{peers[peer]} and {address} are the same worker; name each once")
        peers[peer] = address
