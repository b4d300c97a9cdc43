"""The calls that a device makes, as methods: `device_runtime.messages` over a `Transport`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import quote

from device_runtime import messages
from device_runtime.download import fetch
from device_runtime.errors import IntegrityError
from device_runtime.messages import (
    CheckIn,
    CheckInReply,
    Configuration,
    Enrolment,
    EnrolmentReply,
    EvaluationReport,
    ReportReply,
)
from device_runtime.tensors import sha256
from device_runtime.transport import Response, Transport, status_error

_LONGEST_WAIT = 86_400.0  # seconds; whatever a server asks for, a device comes back within a day
_JSON = {"Content-Type": "application/json"}
_Message = TypeVar("_Message", EnrolmentReply, CheckInReply, Configuration, ReportReply)


class ServerClient:
    """A server as a device sees it.

    Every method raises NetworkError where it can't be reached, and TurnedAwayError where it does not take this device.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def enrol(self, enrolment: Enrolment) -> EnrolmentReply:
        """Tell the server the secret by which it is to know this device; the one call that names no caller."""
        return _parse(EnrolmentReply, self._post(messages.ENROL, enrolment.to_json()), "enrolment")

    def check_in(self, check_in: CheckIn) -> CheckInReply:
        """Offer to take part in a round."""
        return _parse(CheckInReply, self._post(messages.CHECK_IN, check_in.to_json()), "check-in")

    def configuration(self, token: str, holds: str | None = None) -> Configuration:
        """Ask for the work of the round that the token stands for; `holds` is the weights that are here already."""
        path = messages.CONFIGURATION if holds is None else f"{messages.CONFIGURATION}?{messages.HOLDS}={quote(holds)}"
        response = self._transport.request("GET", path, headers={messages.TOKEN: token})
        return _parse(Configuration, response, "configuration")

    def report(self, token: str, report: bytes | EvaluationReport, patience: float | None = None) -> ReportReply:
        """Hand in an encoded update, or what came of an evaluation; `patience` as of `Transport.retried`."""
        headers = {messages.TOKEN: token, "Content-Type": "application/octet-stream"}
        if isinstance(report, EvaluationReport):
            report, headers = json.dumps(report.to_json()).encode(), headers | _JSON
        response = self._transport.request("POST", messages.REPORT, report, headers, patience=patience)
        return _parse(ReportReply, response, "report")

    def fetch(self, path: str, identity: str, limit: int, target: Path) -> None:
        """Have the bytes whose SHA-256 is `identity` in a file; see `device_runtime.download.fetch`."""
        fetch(self._transport, path, identity, limit, target)

    def download(self, path: str, identity: str, limit: int) -> bytes:
        """Bytes whose SHA-256 is `identity`, of at most `limit` bytes.

        Raises:
            NetworkError: the server does not have them.
            IntegrityError: it sent others.
        """
        response = self._transport.request("GET", path, limit=limit)
        if response.status != 200:
            raise status_error(path, response.status)
        if sha256(response.body) != identity:
            raise IntegrityError(f"{path}: what the server sent does not have the SHA-256 {identity}")
        return response.body

    def download_optional(self, path: str, limit: int) -> bytes | None:
        """Bytes whose identity is not known, of at most `limit` bytes; None where the server does not have them.

        Raises:
            NetworkError: the server can't say.
        """
        response = self._transport.request("GET", path, limit=limit)
        if response.status not in (200, 404):
            raise status_error(path, response.status)
        return response.body if response.status == 200 else None

    def _post(self, path: str, message: dict[str, Any]) -> Response:
        return self._transport.request("POST", path, json.dumps(message).encode(), _JSON)


def _parse(kind: type[_Message], response: Response, what: str) -> _Message:
    """The answer as a message whose every field is what its annotation says, else an error."""
    try:
        message = kind(**json.loads(response.body))
    except (ValueError, TypeError, RecursionError):
        message = None
    if message is None or not all(_fits(getattr(message, name), hint) for name, hint in get_type_hints(kind).items()):
        raise status_error(what, response.status, _reason(response))
    return message


def _fits(value: Any, annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return isinstance(value, str) and value in get_args(annotation)
    if isinstance(value, bool):  # which Python counts among the integers
        return False
    if annotation is float:  # all of them are seconds to wait
        return isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= _LONGEST_WAIT
    if annotation is str:  # tokens and identities go into headers and paths
        return isinstance(value, str) and value.isprintable()
    if get_origin(annotation) is list:
        return isinstance(value, list) and all(_fits(item, get_args(annotation)[0]) for item in value)
    if annotation is int:
        return isinstance(value, int) and value >= 0
    return value is None or isinstance(value, dict)


def _reason(response: Response) -> str:
    """What the server says of itself where it gives no message of the contract, such as for a malformed request."""
    try:
        message = json.loads(response.body)["message"]
    except (ValueError, TypeError, LookupError, RecursionError):
        message = None
    if isinstance(message, str) and message.isprintable():
        return f"the server answers with status {response.status}: {message}"
    return f"the server's answer (status {response.status}) is not understood; is it a pocketfed server?"
