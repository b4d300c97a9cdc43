"""Enrolment: a device draws a secret, keeps it, and tells it to a server once; from then on it is known by it.

The secret is in ``secrets/`` of the state folder, in a file for each server and client: it outlives rounds and
populations, which have folders of their own beside it, goes to no server but its own, and is where all is that a device
must not lose. It is on the disk before it is sent: an enrolment whose answer was lost is repeated with the same one.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from device_runtime.errors import InputError, TurnedAwayError
from device_runtime.files import Lock, unwritable
from device_runtime.messages import Enrolment, EnrolmentReply
from device_runtime.sealed import open_sealed, seal
from device_runtime.server_client import ServerClient
from device_runtime.tensors import canonical_json, sha256
from device_runtime.transport import Caller

_BYTES = 32  # of a secret, drawn at random
_LOCK_SECONDS = 0.02  # between tries for a lock that is held for one write


class Credentials:
    """A client's secret for one server, in a file that is its owner's alone.

    Args:
        folder: the device's state folder.
        server: `Transport.server`.
        client: the device's name.
    """

    def __init__(self, folder: Path, server: str, client: str) -> None:
        self._folder = folder / "secrets"
        self._about = {"server": server, "client": client}
        self.client = client
        self.path = self._folder / sha256(canonical_json(self._about))[:16]

    def caller(self) -> Caller:
        """The client with its secret; where there is none yet, one is drawn and kept.

        Raises:
            InputError: the file can't be read or written.
        """
        with self._locked():
            kept = self._read()
            if kept is None:
                kept = secrets.token_urlsafe(_BYTES), False
                self._write(*kept)
        return Caller(self.client, kept[0])

    @property
    def enrolled(self) -> bool:
        """Whether the server has taken the secret."""
        kept = self._read()
        return kept is not None and kept[1]

    def confirm(self) -> None:
        """The server has taken the secret."""
        with self._locked():
            kept = self._read()
            if kept is not None:
                self._write(kept[0], True)

    def _read(self) -> tuple[str, bool] | None:
        """The secret, and whether it is enrolled; None where there is none, or its checksum does not hold."""
        try:
            self.path.open("rb").close()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"{self.path}: can't read this device's secret: {error.strerror}") from None
        sealed = open_sealed(self.path)
        if sealed is None:
            return None
        with sealed:
            secret, enrolled = sealed.header.get("secret"), sealed.header.get("enrolled")
            return (secret, enrolled is True) if isinstance(secret, str) else None

    def _write(self, secret: str, enrolled: bool) -> None:
        seal(self.path, {**self._about, "secret": secret, "enrolled": enrolled}, private=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Of two processes that want a secret at once, the second takes what the first has drawn."""
        lock = Lock(self.path.with_suffix(".lock"))
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            while not lock.acquire() and Lock.available:
                time.sleep(_LOCK_SECONDS)
        except OSError as error:
            raise unwritable(self.path, error) from None
        try:
            yield
        finally:
            lock.release()


def enrol(server: ServerClient, credentials: Credentials, code: str) -> None:
    """Have the server take the kept secret; asked again, it says the same.

    Args:
        server: its transport names no caller.
        credentials: of this server.
        code: of the fleet's operator; empty where the server enrols anybody.

    Raises:
        TurnedAwayError: the server refused.
        NetworkError: it can't be reached.
        InputError: the secret can't be kept.
    """
    reply = server.enrol(Enrolment(code, credentials.client, credentials.caller().secret))
    if reply.verdict != "enrolled":
        raise TurnedAwayError(_refusal(reply, credentials, code))
    credentials.confirm()


def _refusal(reply: EnrolmentReply, credentials: Credentials, code: str) -> str:
    client = credentials.client
    if reply.reason == "code" and not code:
        return (
            f"{client!r} is not enrolled, and the server enrols nobody without a code: ask the fleet's operator for"
            f" one, then 'pocketfed-device enrol --server URL --client {client} --code CODE'"
        )
    said = {
        "code": "the code is unknown, used, expired or of another client: ask the fleet's operator for another one",
        "client": "the server takes no client of this name: name another one with --client",
        "taken": "the name is another device's, or this one's with a secret that is lost: name another one with"
        " --client, or ask the fleet's operator for a code for this name",
        "secret": f"the secret is too short for this server: remove {credentials.path} and enrol again",
    }.get(reply.reason, f"{reply.reason}: {reply.message}")
    return f"{client!r} is not enrolled: {said}"
