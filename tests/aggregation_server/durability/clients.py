"""Devices over HTTP that never give up, and remember what they were told: threads, with updates known beforehand."""

from __future__ import annotations

import http.client
import json
import threading
import time
import zlib
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from device_runtime import codec, messages
from device_runtime.bundle import Bundle
from device_runtime.update import ClientUpdate
from tests.aggregation_server.fleet import secret_of

_PAUSE = 0.02
_LONGEST = 120.0


def update_of(bundle: Bundle, name: str, round_number: int) -> bytes:
    """The update of a device in a round: always the same, with values large and small, so that an order would show."""
    manifest = bundle.manifest
    rng = np.random.default_rng([zlib.crc32(name.encode()), round_number])
    delta = tuple(
        (rng.normal(size=[d or 0 for d in spec.shape]) * 10 ** rng.uniform(-4, 0)).astype(np.float32)
        for spec in manifest.tensors
    )
    update = ClientUpdate(delta, int(rng.integers(1, 1000)), round_number, {"loss": float(rng.random())})
    return codec.encode(update, manifest.tensors, manifest.model_id, "f32", 0)


class Client(threading.Thread):
    """A device that takes part until the task is complete, whatever happens to its servers.

    Args:
        bundle: what it is to train.
        name: its name.
        servers: base URLs, taken in turn: each request goes to the next one.
        linger: seconds between having its work and reporting.
        held: by round, what is to happen before it reports.

    Attributes:
        acknowledged: by round, how often its report was accepted or found to be counted already.
        answers: how often it heard what.
        faults: what a server must never say.
    """

    def __init__(
        self,
        bundle: Bundle,
        name: str,
        servers: Sequence[str],
        linger: float = 0.0,
        held: Mapping[int, threading.Event] | None = None,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._bundle = bundle
        self._servers = servers
        self._linger = linger
        self._held = held or {}
        self._calls = 0
        self._connections: dict[str, http.client.HTTPConnection] = {}
        self._ended = False
        self.acknowledged: Counter[int] = Counter()
        self.answers: Counter[str] = Counter()
        self.faults: list[str] = []

    def run(self) -> None:
        body = {"code": "", "client": self.name, "secret": secret_of(self.name)}
        self._call("POST", messages.ENROL, json.dumps(body).encode())
        try:
            while self._take_part():
                pass
        except Exception as error:  # the test reads it
            self.faults.append(f"{type(error).__name__}: {error}")
        for connection in self._connections.values():
            connection.close()

    def stop(self) -> None:
        """End within the next call."""
        self._ended = True

    def _take_part(self) -> bool:
        body = {"population": self._bundle.manifest.name, "client": self.name, "runtime": "test", "tasks": ["training"]}
        _, reply = self._call("POST", messages.CHECK_IN, json.dumps(body).encode())
        self.answers[reply["decision"]] += 1
        if reply["decision"] != "accept":
            time.sleep(_PAUSE)
            return bool(reply["decision"] == "reject")
        while True:
            _, work = self._call("GET", messages.CONFIGURATION, token=reply["token"])
            if work["state"] != "wait":
                break
            time.sleep(_PAUSE)
        if work["state"] != "start":
            return True
        time.sleep(self._linger)
        number = work["round_number"]
        if number in self._held:
            self._held[number].wait(_LONGEST)
        status, answer = self._call("POST", messages.REPORT, update_of(self._bundle, self.name, number), reply["token"])
        self.answers[answer["reason"] or answer["verdict"]] += 1
        if status == 200 or answer["reason"] == "duplicate":
            self.acknowledged[number] += 1
        else:
            self.faults.append(f"round {number}: {status} {answer}")
        return True

    def _call(self, method: str, path: str, body: bytes | None = None, token: str | None = None) -> tuple[int, Any]:
        """The first answer that is one: a server that is away, or says 503, is asked again, or the next one is."""
        name = b64encode(f"{self.name}:{secret_of(self.name)}".encode()).decode()
        headers = {"Authorization": f"Basic {name}", **({messages.TOKEN: token} if token else {})}
        until = time.monotonic() + _LONGEST
        while time.monotonic() < until and not self._ended:
            url = self._servers[self._calls % len(self._servers)]
            self._calls += 1
            try:
                connection = self._connections.get(url)
                if connection is None:
                    connection = self._connections[url] = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException):
                self._connections.pop(url).close()
                self.answers["gone"] += 1
                time.sleep(_PAUSE)
                continue
            if answer.status < 500:
                return answer.status, json.loads(content)
            self.answers[str(answer.status)] += 1
            if answer.status != 503 or not answer.headers.get("Retry-After"):
                self.faults.append(f"{path}: {answer.status} {content!r}")
            time.sleep(_PAUSE)
        raise TimeoutError(f"{path}: no answer")


def wait_for(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something is so."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not come to it"
        time.sleep(0.01)
