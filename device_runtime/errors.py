"""What can go wrong, and the exit code that a command ends with when it does.

PocketfedError
├── CheckFailedError   1  a check ran to its end and found a difference
├── InputError         2  wrong usage or input; the message names the file or field
├── NetworkError       3  the server could not be reached, or failed
├── IntegrityError     4  a hash, a checksum, a signature or a format does not hold
│   └── UpdateError       the same for one encoded update; `reason` is what a server counts it under
├── UntrustedError     4  the server can't prove that it is the one that is meant
└── TurnedAwayError    5  the server does not take this device; waiting does not change that

The other packages derive their errors from these, so that every command maps an error to a message of
one line and to an exit code in one place.
"""

from __future__ import annotations


class PocketfedError(Exception):
    """Base of all errors that are meant for a person to read; the message is one line."""

    exit_code = 2


class CheckFailedError(PocketfedError):
    """A check ran to its end and found a difference."""

    exit_code = 1


class InputError(PocketfedError):
    """Wrong usage or input; the message names the file, field or option and what was expected."""

    exit_code = 2


class NetworkError(PocketfedError):
    """The other side could not be reached, answered with a failure, or not in time."""

    exit_code = 3


class IntegrityError(PocketfedError):
    """A hash, a checksum, a signature or a format does not hold; nothing of the input was used."""

    exit_code = 4


class UpdateError(IntegrityError):
    """An update that is refused. `reason` is a short, fixed word, such as ``checksum``, to count it by."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class UntrustedError(PocketfedError):
    """The server's certificate does not verify; nothing was said to it."""

    exit_code = 4


class TurnedAwayError(PocketfedError):
    """The server was reached, and does not take this device; the message says what its owner can do."""

    exit_code = 5
