"""Who calls: the name and the secret of HTTP's Basic scheme (RFC 7617)."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from starlette.requests import Request

from aggregation_server.access.enrolment import PEOPLE
from aggregation_server.access.tokens import Role, same
from aggregation_server.coordination.requests import Caller
from aggregation_server.web.answers import ProblemError

_ASK = {"WWW-Authenticate": 'Basic realm="pocketfed", charset="UTF-8"'}
_LONGEST = 512


@dataclass(frozen=True)
class Keys:
    """The keys of the people who run the fleet."""

    operator: str
    viewer: str

    def role(self, caller: Caller) -> Role | None:
        """What a caller may do; None for one that is no person."""
        for name, key in (("operator", self.operator), ("viewer", self.viewer)):
            if caller.name == name and same(caller.secret.encode(), key.encode()):
                return name  # type: ignore[return-value]
        return None


def caller_of(request: Request) -> Caller:
    """The caller's name and secret, which are still to be checked.

    Raises:
        ProblemError: the request names nobody (status 401).
    """
    scheme, _, content = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic" and len(content) <= _LONGEST:
        try:
            name, colon, secret = base64.b64decode(content.strip(), validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            colon = ""
        if colon and name.isprintable() and len(name) <= 64:
            return Caller(name, secret)
    raise ProblemError(401, "no_caller", "expected 'Authorization: Basic …' with a name and its secret", _ASK)


def unknown_caller() -> ProblemError:
    """The answer to a caller that is not known: it says nothing of whether the name is."""
    return ProblemError(401, "unknown_caller", "not enrolled, revoked, or with another secret", _ASK)


def is_person(caller: Caller) -> bool:
    """Whether the name is one that people call by."""
    return caller.name in PEOPLE


def require_role(request: Request, keys: Keys, role: Role) -> None:
    """Let pass an operator, and where `role` is ``viewer`` a viewer too.

    Raises:
        ProblemError: it is somebody else (status 401), or a viewer who may not do this (403).
    """
    found = keys.role(caller_of(request))
    if found is None:
        raise unknown_caller()
    if role == "operator" and found != "operator":
        raise ProblemError(403, "operator_only", "only the operator may do this: call as 'operator' with that key")
