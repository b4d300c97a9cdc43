"""``pocketfed-device run``: take part in the rounds of a server."""

from __future__ import annotations

import argparse
import contextlib
import functools
import random
import signal
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
    trusted,
)
from device_runtime.commands.server_options import add_server, cache, code, credentials, state, transport
from device_runtime.errors import InputError, NetworkError, PocketfedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from device_runtime.commands.options import Subparsers
    from device_runtime.enrolment import Credentials
    from device_runtime.events import Events
    from device_runtime.installation import Installation
    from device_runtime.messages import TaskKind
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
    add_server(run)
    run.add_argument(
        "--data", type=Path, metavar="FILE", help="examples to train on: .npz with x and y, or a local store"
    )
    run.add_argument(
        "--test-data",
        type=Path,
        metavar="FILE",
        help="examples to evaluate on, likewise: the device takes part in rounds of evaluation too, or alone in those",
    )
    run.add_argument("--population", required=True, metavar="NAME", help="the population, by default a model's name")
    add_root(run)
    run.add_argument(
        "--error-feedback",
        action="store_true",
        help="add what an update's encoding lost to the next update: for devices that take part often",
    )
    run.add_argument("--rounds", type=positive, metavar="N", help="stop after N accepted reports (no limit)")
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
    from device_runtime.participant import EndedError, Participant
    from device_runtime.progress import SavePolicy
    from device_runtime.server_client import ServerClient
    from device_runtime.tensors import canonical_json, sha256
    from device_runtime.watch import Habits

    examples = _examples(options)
    events = Events(options.log_json)
    limits = Limits(options.max_memory, options.max_seconds)
    save = SavePolicy(options.save_every, options.save_seconds)
    habits = Habits(options.threads, save, limits, conditions(options), error_feedback=options.error_feedback)
    # Several devices may share the folder, as they may the cache.
    own = sha256(canonical_json([options.population, options.client]))[:16]
    keys = trusted(options)
    kept = credentials(options, transport(options).server)
    with (
        DeviceState(state(options) / own) as remembered,
        transport(options, kept.caller()) as connection,
    ):
        participant = Participant(
            ServerClient(connection),
            options.population,
            options.client,
            examples,
            cache(options),
            remembered,
            habits,
            keys,
            _noticer(events),
            installation=_installation(options),
        )
        cap_memory(limits)
        try:
            with _told_to_end(participant):
                ask = functools.cache(lambda: code(options))  # once, for it may come from standard input
                enrol = functools.partial(_enrol, options, kept, ask, events)
                _take_part(participant, enrol, options.rounds, _teller(events), options.keep_trying, events)
        except EndedError:
            events.tell("ended", "ended, as it was told to")
    return 0


def _examples(options: argparse.Namespace) -> dict[TaskKind, Path]:
    """The files of examples, by the task that they are for."""
    named: dict[TaskKind, Path | None] = {"training": options.data, "evaluation": options.test_data}
    given = {task: path for task, path in named.items() if path is not None}
    if not given:
        raise InputError("no examples: name those to train on with --data, or those to evaluate on with --test-data")
    for task, path in given.items():
        if not _is_file(path):
            option = "--data" if task == "training" else "--test-data"
            raise InputError(f"{path}: no such file; {option} names a .npz file with the arrays x and y")
    return given


def _enrol(options: argparse.Namespace, kept: Credentials, ask: Callable[[], str], events: Events) -> None:
    """Enrol this device, unless it is; with a code, or an empty one where the server enrols anybody."""
    from device_runtime.enrolment import enrol
    from device_runtime.server_client import ServerClient

    if not kept.enrolled:
        enrol(ServerClient(transport(options)), kept, ask())
        events.tell("enrolled", f"enrolled as {kept.client!r}", client=kept.client)


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
    participant: Participant,
    enrol: Callable[[], None],
    rounds: int | None,
    tell: Callable[[Session], None],
    keep_trying: bool,
    events: Events,
) -> None:
    left = rounds

    def count(session: Session) -> None:
        nonlocal left
        tell(session)
        if left is not None and session.outcome.value == "reported":
            left -= 1

    while left is None or left > 0:
        try:
            enrol()
            participant.run(left, count)
            if not keep_trying or left == 0:
                return
            time.sleep(_about(_TRANSIENT_SECONDS))  # the task is complete, and there may be another one
        except PocketfedError as error:
            if not keep_trying:
                raise
            wait = _about(_TRANSIENT_SECONDS if isinstance(error, NetworkError) else _PERMANENT_SECONDS)
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


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no name of a file
        return False
