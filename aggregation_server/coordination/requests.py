"""What callers ask of the coordinator, with who they say they are."""

from __future__ import annotations

from dataclasses import dataclass

from device_runtime.messages import CheckIn


@dataclass(frozen=True)
class Caller:
    """A device's name and secret, as they came."""

    name: str
    secret: str


@dataclass(frozen=True)
class CheckInRequest:
    """A check-in; answered with a `CheckInReply`."""

    caller: Caller
    message: CheckIn


@dataclass(frozen=True)
class ConfigurationRequest:
    """A question for the round's work; answered with a `Configuration`.

    Attributes:
        token: of the acceptance.
        holds: identity of the weights that the device has already; empty for none.
    """

    caller: Caller
    token: str
    holds: str = ""


@dataclass(frozen=True)
class ReportRequest:
    """A report; answered with a `ReportReply`."""

    caller: Caller
    token: str
    body: bytes


@dataclass(frozen=True)
class Admission:
    """A question whether the caller is enrolled, for what is only downloaded; answered with True."""

    caller: Caller


Request = CheckInRequest | ConfigurationRequest | ReportRequest | Admission


class DeniedError(Exception):
    """The caller is not who it says, or may not do this any more; it is told no more than that."""


class LimitedError(Exception):
    """The caller has asked too often.

    Args:
        seconds: until its next request is taken.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the next request is taken in {seconds:.1f} s")
        self.seconds = seconds
