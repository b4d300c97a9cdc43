"""``pocketfed-device run``: take part in the rounds of a server."""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.commands.options import (
    EXIT_CODES,
    add_root,
    add_threads,
    add_trusted_keys,
    positive,
    root,
    seconds,
    trusted,
)
from device_runtime.errors import InputError

if TYPE_CHECKING:
    from device_runtime.commands.options import Subparsers
    from device_runtime.installation import Installation


def add(commands: Subparsers) -> None:
    """Add the command's parser."""
    run = commands.add_parser(
        "run",
        help="take part in the rounds of a server",
        description="Check in at a server, train when accepted, report the update; until the task is complete.",
        epilog=EXIT_CODES,
    )
    run.set_defaults(command=_run)
    run.add_argument("--server", required=True, metavar="URL", help="the server, such as http://192.0.2.1:8080")
    run.add_argument("--data", required=True, type=Path, metavar="FILE", help="local examples: .npz with x and y")
    run.add_argument("--population", required=True, metavar="NAME", help="the population, by default a model's name")
    run.add_argument("--client", default=socket.gethostname(), metavar="NAME", help="this device's name (%(default)s)")
    run.add_argument("--cache", type=Path, metavar="DIR", help="for bundles (~/.cache/pocketfed-device)")
    add_root(run)
    run.add_argument("--rounds", type=positive, metavar="N", help="stop after N accepted reports (no limit)")
    run.add_argument("--timeout", type=seconds, default=30.0, metavar="S", help="of one request (%(default)s)")
    run.add_argument("--attempts", type=positive, default=5, metavar="N", help="tries of a request (%(default)s)")
    run.add_argument(
        "--retry-seconds",
        type=seconds,
        default=1.0,
        metavar="S",
        help="before the 2nd try, then doubled (%(default)s)",
    )
    add_threads(run)
    add_trusted_keys(run)


def _run(options: argparse.Namespace) -> int:
    from device_runtime.participant import Outcome, Participant, Session
    from device_runtime.server_client import ServerClient
    from device_runtime.transport import RetryPolicy, Transport

    retry = RetryPolicy(attempts=options.attempts, first_wait=options.retry_seconds)
    participant = Participant(
        ServerClient(Transport(options.server, options.timeout, retry)),
        options.population,
        options.client,
        options.data,
        options.cache or _default_cache(),
        options.threads,
        trusted(options),
        installation=_installation(options),
    )

    waiting = False

    def tell(session: Session) -> None:
        nonlocal waiting
        was_waiting, waiting = waiting, session.outcome is Outcome.REJECTED
        if session.outcome is Outcome.COMPLETE:
            print("the task is complete", flush=True)
        elif not waiting:
            print(f"round {session.round_number}: {session.outcome.value} ({session.detail})", flush=True)
        elif not was_waiting:  # once for all the rejections in a row
            print(f"waiting for a round ({session.detail})", flush=True)

    if not _is_file(options.data):
        raise InputError(f"{options.data}: no such file; --data names a .npz file with the arrays x and y")
    participant.run(options.rounds, tell)
    return 0


def _installation(options: argparse.Namespace) -> Installation | None:
    from device_runtime.installation import Installation

    try:
        return Installation(root(options))
    except InputError:  # a user without a home folder, for whom nothing is installed either
        return None


def _default_cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocketfed-device"
    except RuntimeError:
        raise InputError("this user has no home folder; name a folder for bundles with --cache") from None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no name of a file
        return False
