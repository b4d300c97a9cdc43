"""Devices that do no training: they check in, fetch what they are told to, and report what a test wants."""

from __future__ import annotations

import json
import secrets
import time
from types import TracebackType
from typing import Any

import httpx
import numpy as np

from device_runtime import codec, messages
from device_runtime.bundle import Bundle
from device_runtime.update import ClientUpdate

PATIENCE_SECONDS = 30.0


class LightDevice:
    """One device of a fleet whose server enrols everybody."""

    def __init__(self, url: str, bundle: Bundle, name: str, runtime: str = "test 1.0") -> None:
        self.name = name
        self.secret = secrets.token_urlsafe(32)
        self.token = ""
        self._bundle = bundle
        self._runtime = runtime
        self._client = httpx.Client(base_url=url, auth=(name, self.secret), timeout=PATIENCE_SECONDS)
        enrolment = messages.Enrolment("", name, self.secret)
        assert self._client.post(messages.ENROL, json=enrolment.to_json()).status_code == 200

    def __enter__(self) -> LightDevice:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._client.close()

    def check_in(self) -> dict[str, Any]:
        """The reply to a check-in; the token of an acceptance is kept."""
        tasks = ["training", "evaluation"]
        message = messages.CheckIn(self._bundle.manifest.name, self.name, self._runtime, tasks)
        reply: dict[str, Any] = self._client.post(messages.CHECK_IN, json=message.to_json()).json()
        self.token = reply.get("token") or self.token
        return reply

    def join(self, task: str = "training") -> None:
        """Check in until a round of this task takes the device."""
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            if self.check_in()["decision"] == "accept" and f"-{task[0]}-" in self.token:
                return
            time.sleep(0.05)
        raise AssertionError(f"{self.name}: no {task} takes it")

    def configuration(self) -> dict[str, Any]:
        """The configuration, once the round has started; the weights are fetched too."""
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            answer = self._client.get(messages.CONFIGURATION, headers={messages.TOKEN: self.token})
            found: dict[str, Any] = answer.json()
            if found["state"] == "aborted":
                return found
            if found["state"] == "start":
                assert self._client.get(messages.weights_path(found["weights"])).status_code == 200
                return found
            time.sleep(0.05)
        raise AssertionError(f"{self.name}: the round does not start")

    def train(self, value: float = 1e-3, weight: int = 10, loss: float = 1.0) -> dict[str, Any]:
        """Report an update whose delta has the value `value` everywhere."""
        manifest, work = self._bundle.manifest, self.configuration()
        delta = tuple(np.full([d or 0 for d in spec.shape], value, np.float32) for spec in manifest.tensors)
        update = ClientUpdate(delta, weight, work["round_number"], {"loss": loss})
        return self.report(codec.encode(update, manifest.tensors, manifest.model_id, work["work"]["codec"], 0))

    def evaluate(self, count: int, correct: float, loss_sum: float) -> dict[str, Any]:
        """Report an evaluation."""
        number = self.configuration()["round_number"]
        return self.report(json.dumps(messages.EvaluationReport(number, count, correct, loss_sum).to_json()).encode())

    def report(self, body: bytes) -> dict[str, Any]:
        """Report these bytes."""
        answer = self._client.post(messages.REPORT, content=body, headers={messages.TOKEN: self.token})
        reply: dict[str, Any] = answer.json()
        return reply
