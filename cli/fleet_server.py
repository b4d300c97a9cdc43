"""A running aggregation server as its people see it: the calls of a viewer and an operator."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from device_runtime.errors import CheckFailedError, InputError, NetworkError, PocketfedError

_Function = TypeVar("_Function", bound=Callable[..., Any])
_LARGEST_ANSWER = 1 << 28


def server_options(function: _Function) -> _Function:
    """The options that say which server, and how to be known there; see `FleetServer.of`."""
    options = [
        click.option("--server", default="http://127.0.0.1:8080", show_default=True, metavar="URL", help="The server."),
        click.option(
            "--keys",
            type=click.Path(path_type=Path),
            default=Path(),
            help="Folder with operator.key, or viewer.key where that is enough.  [here]",
        ),
        click.option("--ca-file", type=click.Path(path_type=Path), help="PEM file of a private certificate authority."),
        click.option("--insecure", is_flag=True, help="Talk to another machine without TLS."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


class FleetServer:
    """Calls to a server, in somebody's name.

    Args:
        url: its URL.
        name: ``operator`` or ``viewer``.
        key: that person's.
        ca_file: a PEM file of certificate authorities; None are those of the system.
        insecure: whether the key may go over a network without TLS.
    """

    def __init__(self, url: str, name: str, key: str, ca_file: Path | None = None, insecure: bool = False) -> None:
        from device_runtime.tls import tls_context
        from device_runtime.transport import Caller, RetryPolicy, Transport

        tls = tls_context(ca_file) if ca_file is not None else None
        self._url = url
        self._transport = Transport(
            url, retry=RetryPolicy(attempts=3), caller=Caller(name, key), tls=tls, insecure=insecure
        )

    @classmethod
    def of(cls, url: str, keys: Path, ca_file: Path | None, insecure: bool, operator: bool = False) -> FleetServer:
        """The server of `server_options`.

        Raises:
            InputError: no key is there.
        """
        names = ("operator",) if operator else ("viewer", "operator")
        for name in names:
            path = keys / f"{name}.key"
            try:
                return cls(url, name, path.read_text().strip(), ca_file, insecure)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or "it is no text"
                raise InputError(f"{path}: can't read the {name}'s key: {reason}") from None
        raise InputError(
            f"{keys / f'{names[-1]}.key'}: no such file; --keys names the folder where 'pocketfed serve' keeps its keys"
        )

    def bytes_of(self, path: str) -> bytes:
        """What the server has at a path.

        Raises:
            NetworkError: it can't be reached, or does not give it.
        """
        response = self._transport.request("GET", path, limit=_LARGEST_ANSWER)
        if response.status != 200:
            raise self._error(path, response.status, response.body)
        return response.body

    def get(self, path: str) -> Any:
        """A JSON answer; raises as `bytes_of`."""
        return self._parsed(path, self.bytes_of(path))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer to a call that changes something.

        Raises:
            CheckFailedError: the server says that it can't be done.
            InputError: the server says that the body is wrong.
            NetworkError: it can't be reached, or takes no such call.
        """
        content = json.dumps(body).encode()
        response = self._transport.request("POST", path, content, {"Content-Type": "application/json"})
        if response.status != 200:
            raise self._error(path, response.status, response.body)
        return self._parsed(path, response.body)

    def _parsed(self, path: str, body: bytes) -> Any:
        try:
            return json.loads(body)
        except ValueError:
            raise NetworkError(f"{self._url}{path}: the answer is no JSON; is it a pocketfed server?") from None

    def _error(self, path: str, status: int, body: bytes) -> PocketfedError:
        try:
            message = str(json.loads(body)["message"])
        except (ValueError, KeyError, TypeError):
            return NetworkError(
                f"{self._url}{path}: the server answers with status {status}; is it a pocketfed server?"
            )
        if status == 401:
            return InputError(f"{self._url}: the server does not know this key; --keys names the folder with its own")
        kinds: dict[int, type[PocketfedError]] = {400: InputError, 409: CheckFailedError}
        return kinds.get(status, NetworkError)(message)
