"""What proves who somebody is: devices' secrets, the tokens of a round, the keys of people.

A secret is drawn at random and long, so its plain SHA-256 can be stored: there is no dictionary to try. A round's token
is not stored at all. It is a keyed hash (HMAC-SHA-256) of the round and the device: the same device is given the same
token again, nobody else can use it, and a server knows without its database whether an upload is worth reading.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aggregation_server.storage.once import write_once
from device_runtime.errors import InputError
from device_runtime.messages import TaskKind

Role = Literal["operator", "viewer"]

_TOKEN = re.compile(r"([0-9]{1,15})-([0-9]{1,15})-([te])-([0-9a-f]{64})")
_LETTERS: dict[TaskKind, str] = {"training": "t", "evaluation": "e"}
_TASKS: dict[str, TaskKind] = {letter: task for task, letter in _LETTERS.items()}


@dataclass(frozen=True)
class Ticket:
    """What a valid token says.

    Attributes:
        round_id: of the attempt.
        round_number: of the round.
        task: of the round.
    """

    round_id: int
    round_number: int
    task: TaskKind


def token_for(ticket: Ticket, client: str, key: bytes) -> str:
    """The token of a device in a round."""
    text = f"{ticket.round_id}-{ticket.round_number}-{_LETTERS[ticket.task]}"
    return f"{text}-{_code(text, client, key)}"


def read_token(token: str, client: str, key: bytes) -> Ticket | None:
    """What a token says; None where it is not this device's."""
    found = _TOKEN.fullmatch(token)
    if found is None:
        return None
    text, _, code = token.rpartition("-")
    if not hmac.compare_digest(code, _code(text, client, key)):
        return None
    return Ticket(int(found[1]), int(found[2]), _TASKS[found[3]])


def hashed(secret: str) -> bytes:
    """What is stored of a secret, or of an enrolment code."""
    return hashlib.sha256(secret.encode()).digest()


def same(left: bytes, right: bytes) -> bool:
    """Whether they are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(left, right)


def read_key(path: Path, role: Role) -> str:
    """The key of an operator or a viewer from its file; where there is none, a new one is drawn and kept there.

    Raises:
        InputError: the file can't be read or made, others may read it, or it holds no key.
    """
    try:
        write_once(path, secrets.token_urlsafe(32) + "\n")
    except OSError as error:
        raise InputError(f"{path}: can't keep the {role}'s key there: {error.strerror}") from None
    try:
        if path.stat().st_mode & 0o077:
            raise InputError(f"{path}: others may read the {role}'s key; do chmod 600 {path}")
        key = path.read_text().strip()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: can't read the {role}'s key: {getattr(error, 'strerror', None) or error}") from None
    if not re.fullmatch(r"[!-~]{32,}", key):
        raise InputError(
            f"{path}: expected the {role}'s key, a line of at least 32 characters; delete it for a new one"
        )
    return key


def _code(text: str, client: str, key: bytes) -> str:
    return hmac.new(key, f"{text}-{client}".encode(), hashlib.sha256).hexdigest()
