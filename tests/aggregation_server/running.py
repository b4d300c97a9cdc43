"""`Running`: a server in a process of its own; and `Callers`, who talk to one over HTTP."""

from __future__ import annotations

import ssl
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx

from aggregation_server.web.callers import Keys
from device_runtime import messages
from tests.aggregation_server.fleet import secret_of

KEYS = Keys("the-operator-s-key".ljust(43, "-"), "the-viewer-s-key".ljust(43, "-"))


class Callers:
    """Those who call a server.

    Args:
        url: its base URL.
        keys: of the people who run its fleet.
        certificate: what its clients trust, where it speaks TLS.

    Attributes:
        operator, viewer, nobody: clients, the last one without a name.
    """

    def __init__(self, url: str, keys: Keys, certificate: Path | None = None) -> None:
        self.url = url
        self._verify = True if certificate is None else ssl.create_default_context(cafile=certificate)
        self._clients: list[httpx.Client] = []
        self._devices: dict[str, httpx.Client] = {}
        self.operator = self.client(("operator", keys.operator))
        self.viewer = self.client(("viewer", keys.viewer))
        self.nobody = self.client(None)

    def client(self, auth: tuple[str, str] | None) -> httpx.Client:
        """A client that calls as somebody."""
        client = httpx.Client(base_url=self.url, auth=auth, trust_env=False, timeout=20, verify=self._verify)
        self._clients.append(client)
        return client

    def disconnect(self) -> None:
        """Close the clients' connections."""
        for client in self._clients:
            client.close()

    def device(self, name: str, code: str = "") -> httpx.Client:
        """The client of a device, which is enrolled at its first call."""
        if name not in self._devices:
            body = {"code": code, "client": name, "secret": secret_of(name)}
            answer = self.nobody.post(messages.ENROL, json=body)
            assert answer.status_code == 200, answer.text
            self._devices[name] = self.client((name, secret_of(name)))
        return self._devices[name]

    def know(self, name: str) -> None:
        """Call as a device that is enrolled already."""
        self._devices[name] = self.client((name, secret_of(name)))

    def checked_in(self, name: str, **fields: Any) -> httpx.Response:
        """The answer to a device's check-in."""
        body = {"population": "tiny", "client": name, "runtime": "test", "tasks": ["training", "evaluation"]} | fields
        return self.device(name).post(messages.CHECK_IN, json=body)

    def check_in(self, name: str) -> str:
        """The token of a device that is accepted."""
        reply = messages.CheckInReply(**self.checked_in(name).json())
        assert reply.decision == "accept", reply
        return reply.token

    def configuration(self, name: str, token: str, holds: str = "") -> messages.Configuration:
        """A device's work."""
        headers, query = {messages.TOKEN: token}, {messages.HOLDS: holds}
        answer = self.device(name).get(messages.CONFIGURATION, params=query, headers=headers)
        assert answer.status_code == 200, answer.text
        return messages.Configuration(**answer.json())

    def report(self, name: str, body: Any, token: str) -> tuple[int, messages.ReportReply]:
        """The status and the answer of a device's report."""
        answer = self.device(name).post(messages.REPORT, content=body, headers={messages.TOKEN: token})
        return answer.status_code, messages.ReportReply(**answer.json())

    def status(self) -> dict[str, Any]:
        """The server's status."""
        answer = self.viewer.get(messages.STATUS)
        assert answer.status_code == 200, answer.text
        content = answer.json()
        assert isinstance(content, dict)
        return content

    def status_when(self, key: str, value: object, seconds: float = 20.0) -> dict[str, Any]:
        """The status, once a key of it has a value: rounds are committed a moment after their last report."""
        end = time.monotonic() + seconds
        while (status := self.status())[key] != value:
            assert time.monotonic() < end, f"{key} is {status[key]!r}, not {value!r}"
            time.sleep(0.05)
        return status


class Running(Callers):
    """A server that runs in a process."""

    def __init__(self, url: str, process: BaseProcess, keys: Keys, certificate: Path | None = None) -> None:
        super().__init__(url, keys, certificate)
        self.process = process

    def kill(self) -> None:
        """What a `kill -9` does, and the clients' connections closed."""
        self.process.kill()
        self.process.join()
        self.disconnect()
