"""``pocketfed-device run``: take part in the rounds of a server."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.commands.conditions import add_conditions, conditions
from device_runtime.commands.options import (
    EXIT_CODES,
    add_limits,
    add_log_json,
    add_root,
    add_saving,
    add_threads,
    add_trusted_keys,
    positive,
    root,
    seconds,
    trusted,
)
from device_runtime.errors import InputError, NetworkError, PocketfedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from device_runtime.commands.options import Subparsers
    from device_runtime.events import Events
    from device_runtime.installation import Installation
    from device_runtime.participant import Participant, Session

_TRANSIENT_SECONDS = 900.0  # between tries after what may pass (Bonawitz et al. 2019), ±20 %
_PERMANENT_SECONDS = 14_400.0  # and after one that is likely to stay


def add(commands: Subparsers) -> None:
    """Add the command's parser."""
    run = commands.add_parser(
        "run",
        help="take part in the rounds of a server",
        description="Check in at a server, train when accepted, report the update; until the task is complete, or with"
        " --keep-trying for the next task too.",
        epilog=EXIT_CODES,
    )
    run.set_defaults(command=_run)
    run.add_argument("--server", required=True, metavar="URL", help="the server, such as http://192.0.2.1:8080")
    run.add_argument(
        "--data", required=True, type=Path, metavar="FILE", help="local examples: .npz with x and y, or a local store"
    )
    run.add_argument("--population", required=True, metavar="NAME", help="the population, by default a model's name")
    run.add_argument("--client", default=socket.gethostname(), metavar="NAME", help="this device's name (%(default)s)")
    run.add_argument("--cache", type=Path, metavar="DIR", help="for bundles (~/.cache/pocketfed-device)")
    add_root(run)
    run.add_argument("--state", type=Path, metavar="DIR", help="for what it remembers of a round (CACHE/rounds)")
    run.add_argument(
        "--error-feedback",
        action="store_true",
        help="add what an update's encoding lost to the next update: for devices that take part often",
    )
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
    run.add_argument(
        "--keep-trying",
        action="store_true",
        help="do not end: try again after 15 minutes where the task is complete or the network or the server failed,"
        " after another error after 4 hours, both give or take a fifth",
    )
    add_saving(run)
    add_limits(run)
    add_log_json(run)
    add_conditions(run)
    add_threads(run)
    add_trusted_keys(run)


def _run(options: argparse.Namespace) -> int:
    from device_runtime.device_state import DeviceState
    from device_runtime.events import Events
    from device_runtime.limits import Limits, cap_memory
    from device_runtime.participant import EndedError, Habits, Participant
    from device_runtime.progress import SavePolicy
    from device_runtime.server_client import ServerClient
    from device_runtime.tensors import canonical_json, sha256
    from device_runtime.transport import RetryPolicy, Transport

    if not _is_file(options.data):
        raise InputError(f"{options.data}: no such file; --data names a .npz file with the arrays x and y")
    events = Events(options.log_json)
    retry = RetryPolicy(attempts=options.attempts, first_wait=options.retry_seconds)
    server = ServerClient(Transport(options.server, options.timeout, retry))
    cache: Path = options.cache or _default_cache()
    limits = Limits(options.max_memory, options.max_seconds)
    save = SavePolicy(options.save_every, options.save_seconds)
    habits = Habits(options.threads, save, limits, conditions(options), error_feedback=options.error_feedback)
    # Several devices may share the folder, as they may the cache.
    own = sha256(canonical_json([options.population, options.client]))[:16]
    keys = trusted(options)
    with DeviceState((options.state or cache / "rounds") / own) as state:
        participant = Participant(
            server,
            options.population,
            options.client,
            options.data,
            cache,
            state,
            habits,
            keys,
            _noticer(events),
            installation=_installation(options),
        )
        cap_memory(limits)
        try:
            with _told_to_end(participant):
                _take_part(participant, options.rounds, _teller(events), options.keep_trying, events)
        except EndedError:
            events.tell("ended", "ended, as it was told to")
    return 0


@contextlib.contextmanager
def _told_to_end(participant: Participant) -> Iterator[None]:
    """SIGTERM is told to the participant, within the context."""
    if threading.current_thread() is not threading.main_thread():  # which signals go to
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: participant.end())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _take_part(
    participant: Participant, rounds: int | None, tell: Callable[[Session], None], keep_trying: bool, events: Events
) -> None:
    from device_runtime.participant import TurnedAwayError

    left = rounds

    def count(session: Session) -> None:
        nonlocal left
        tell(session)
        if left is not None and session.outcome.value == "reported":
            left -= 1

    while left is None or left > 0:
        try:
            participant.run(left, count)
            if not keep_trying or left == 0:
                return
            time.sleep(_about(_TRANSIENT_SECONDS))  # the task is complete, and there may be another one
        except PocketfedError as error:
            if not keep_trying:
                raise
            passing = isinstance(error, NetworkError) and not isinstance(error, TurnedAwayError)
            wait = _about(_TRANSIENT_SECONDS if passing else _PERMANENT_SECONDS)
            events.tell("error", f"{error}; again in {wait / 60:.0f} minutes", message=str(error), retry_seconds=wait)
            time.sleep(wait)


def _about(wait: float) -> float:
    return wait * random.uniform(0.8, 1.2)  # noqa: S311


def _noticer(events: Events) -> Callable[..., None]:
    """Tells of what happens within a session; a person who looks on is told why nothing does."""

    def notice(event: str, **fields: object) -> None:
        events.tell(event, f"waiting: {fields['reason']}" if event == "waiting" else "", **fields)

    return notice


def _teller(events: Events) -> Callable[[Session], None]:
    """Tells of sessions; of check-ins in a row that were rejected, or found the task complete, once."""
    from device_runtime.participant import Outcome

    before: Outcome | None = None

    def tell(session: Session) -> None:
        nonlocal before
        repeated, before = session.outcome is before, session.outcome
        number, value, detail = session.round_number, session.outcome.value, session.detail
        if session.outcome not in (Outcome.COMPLETE, Outcome.REJECTED):
            events.tell(value, f"round {number}: {value} ({detail})", round=number, detail=detail)
        elif repeated:
            return
        elif session.outcome is Outcome.COMPLETE:
            events.tell(value, "the task is complete")
        else:
            events.tell(value, f"waiting for a round ({detail})", detail=detail)

    return tell


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
