"""The calls that a device makes, as methods: `device_runtime.messages` over a `Transport`."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TypeVar

from device_runtime import messages
from device_runtime.errors import IntegrityError, NetworkError
from device_runtime.messages import CheckIn, CheckInReply, Configuration, ReportReply
from device_runtime.tensors import sha256
from device_runtime.transport import Response, Transport

# The types of the messages' fields, as they are annotated; what is not listed is a string.
_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "dict[str, Any] | None": (dict, type(None)),
}
_Message = TypeVar("_Message", CheckInReply, Configuration, ReportReply)


class ServerClient:
    """A server as a device sees it; every method raises NetworkError where it can't be reached."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def check_in(self, check_in: CheckIn) -> CheckInReply:
        """Offer to take part in a round."""
        body = json.dumps(check_in.to_json()).encode()
        response = self._transport.request("POST", messages.CHECK_IN, body, {"Content-Type": "application/json"})
        return _parse(CheckInReply, response, "check-in")

    def configuration(self, token: str) -> Configuration:
        """Ask for the work of the round that the token stands for."""
        response = self._transport.request("GET", messages.CONFIGURATION, headers=_authorization(token))
        return _parse(Configuration, response, "configuration")

    def report(self, token: str, update: bytes) -> ReportReply:
        """Hand in an encoded update."""
        headers = {**_authorization(token), "Content-Type": "application/octet-stream"}
        return _parse(ReportReply, self._transport.request("POST", messages.REPORT, update, headers), "report")

    def download(self, path: str, identity: str, limit: int) -> bytes:
        """Bytes whose SHA-256 is `identity`, of at most `limit` bytes.

        Raises:
            NetworkError: the server does not have them.
            IntegrityError: it sent others.
        """
        response = self._transport.request("GET", path, limit=limit)
        if response.status != 200:
            raise NetworkError(f"{path}: the server answers with status {response.status}")
        if sha256(response.body) != identity:
            raise IntegrityError(f"{path}: what the server sent does not have the SHA-256 {identity}")
        return response.body


def _authorization(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _parse(kind: type[_Message], response: Response, what: str) -> _Message:
    try:
        message = kind(**json.loads(response.body))
        for field in fields(message):
            if not isinstance(getattr(message, field.name), _KINDS.get(str(field.type), str)):
                raise TypeError(field.name)
        return message
    except (ValueError, TypeError):
        raise NetworkError(f"{what}: the server's answer (status {response.status}) is not understood") from None
