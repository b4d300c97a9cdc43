"""Options that `enrol` and `run` share: which server, who this device is there, and where that is kept."""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.commands.options import positive, seconds
from device_runtime.errors import InputError
from device_runtime.messages import CLIENT_NAME

if TYPE_CHECKING:
    from device_runtime.enrolment import Credentials
    from device_runtime.transport import Caller, Transport

_LONGEST_CODE = 1024


def add_server(parser: argparse.ArgumentParser) -> None:
    """``--server``, ``--client``, ``--code`` and what a request needs, for `transport`, `credentials` and `code`."""
    parser.add_argument("--server", required=True, metavar="URL", help="the server, such as https://192.0.2.1:8443")
    parser.add_argument(
        "--client", default=socket.gethostname(), metavar="NAME", help="this device's name (%(default)s)"
    )
    code = parser.add_mutually_exclusive_group()
    code.add_argument(
        "--code", metavar="CODE", help="enrol with this one-use code of the fleet's operator; others here can see it"
    )
    code.add_argument(
        "--code-file", type=Path, metavar="FILE", help="the code is this file's first line; - is standard input"
    )
    parser.add_argument(
        "--ca-file",
        type=Path,
        metavar="FILE",
        help="believe certificates of these authorities (PEM) alone, instead of the system's",
    )
    parser.add_argument(
        "--insecure", action="store_true", help="speak to another machine without TLS, where anybody can listen"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="for bundles (~/.cache/pocketfed-device)")
    parser.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        help="for this device's secret and what it remembers of rounds (CACHE/rounds)",
    )
    parser.add_argument("--timeout", type=seconds, default=30.0, metavar="S", help="of one request (%(default)s)")
    parser.add_argument("--attempts", type=positive, default=5, metavar="N", help="tries of a request (%(default)s)")
    parser.add_argument(
        "--retry-seconds",
        type=seconds,
        default=1.0,
        metavar="S",
        help="before the 2nd try, then doubled (%(default)s)",
    )


def transport(options: argparse.Namespace, caller: Caller | None = None) -> Transport:
    """Requests to the server, which name the caller.

    Raises:
        InputError: no URL, one that needs TLS, or no file of certificates.
    """
    from device_runtime.tls import tls_context
    from device_runtime.transport import RetryPolicy, Transport

    tls = None if options.ca_file is None else tls_context(options.ca_file)
    retry = RetryPolicy(attempts=options.attempts, first_wait=options.retry_seconds)
    return Transport(options.server, options.timeout, retry, caller=caller, tls=tls, insecure=options.insecure)


def credentials(options: argparse.Namespace, server: str) -> Credentials:
    """The client's secret for the server.

    Raises:
        InputError: the client's name is none.
    """
    from device_runtime.enrolment import Credentials

    if not re.fullmatch(CLIENT_NAME, options.client):
        raise InputError(
            f"client {options.client!r}: expected a name of 1 to 64 letters, digits, '-', '_' and '.';"
            " name another one with --client"
        )
    return Credentials(state(options), server, options.client)


def code(options: argparse.Namespace) -> str:
    """The code of the options; empty where there is none.

    Raises:
        InputError: its file can't be read, or holds none.
    """
    if options.code_file is None:
        return options.code or ""
    try:
        if str(options.code_file) == "-":
            line = sys.stdin.readline(_LONGEST_CODE)
        else:
            with options.code_file.open(encoding="utf-8") as file:
                line = file.readline(_LONGEST_CODE)
    except (OSError, ValueError) as error:  # ValueError: no name of a file, or no text
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InputError(f"{options.code_file}: can't read the code: {reason}") from None
    if not line.strip():
        raise InputError(f"{options.code_file}: expected the code of the fleet's operator in its first line")
    return str(line.strip())


def cache(options: argparse.Namespace) -> Path:
    """The folder for bundles."""
    if options.cache is not None:
        return Path(options.cache)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocketfed-device"
    except RuntimeError:
        raise InputError("this user has no home folder; name a folder for bundles with --cache") from None


def state(options: argparse.Namespace) -> Path:
    """The folder for what must not be lost."""
    return Path(options.state) if options.state is not None else cache(options) / "rounds"
