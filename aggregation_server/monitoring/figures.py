"""`Figures`: the state of a fleet in numbers, for whoever watches it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import func, select

from aggregation_server.access.enrolment import Enrolments
from aggregation_server.coordination.coordinator import Coordinator
from aggregation_server.history import Counts
from aggregation_server.rounds import Phase, Round
from aggregation_server.storage.rows import Fleet
from aggregation_server.storage.schema import OVER, ROUNDS
from aggregation_server.storage.store import Store

_IDLE_SHARE = 20  # the devices are counted for a twentieth of the time at most, however many they are
_SHORTEST_REST = 1.0
_MOST_RUNTIMES = 30  # devices say what they like
Devices = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Latest:
    """Of the last round of a task that was committed: when it ended, in seconds since 1970, and what it found."""

    ended: float | None
    loss: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Figures:
    """The fleet at one moment.

    Attributes:
        fleet: what all servers share.
        current: the open round; None where the fleet is paused or complete.
        phase: of the open round, or ``paused`` or ``complete``.
        complete: whether the task has had all its rounds.
        round_counts: of the open round.
        counts: of all rounds.
        devices: numbers of devices by ``states`` and by ``runtimes``.
    """

    fleet: Fleet
    current: Round | None
    phase: str
    complete: bool
    round_counts: Counts
    counts: Counts
    devices: Devices


class Observer:
    """Reads the figures of a fleet; may be used by several threads.

    Args:
        coordinator: of the fleet.
        enrolments: of the fleet's devices.
        monotonic: seconds that never go back; exchanged by tests.
    """

    def __init__(
        self, coordinator: Coordinator, enrolments: Enrolments, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.coordinator = coordinator
        self._enrolments = enrolments
        self._monotonic = monotonic
        self._devices: Devices = {}
        self._devices_until = -1.0

    def figures(self) -> Figures:
        """The figures now.

        Raises:
            StoreError: the database failed.
        """
        coordinator = self.coordinator
        fleet, found = coordinator.store.snapshot(coordinator.task.round)
        current, counts = (None, Counts()) if found is None else found
        complete = coordinator.complete
        if complete or fleet.paused:
            phase = "complete" if complete else "paused"
        else:  # where a round is over and its successor not there yet, that one is in its selection
            phase = Phase.SELECTION.value if current is None else current.phase.value
        return Figures(fleet, current, phase, complete, counts, fleet.counts + counts, self.devices())

    def devices(self) -> Devices:
        """Numbers of devices, a moment old where there are very many.

        Raises:
            StoreError: the database failed.
        """
        begin = self._monotonic()
        if begin >= self._devices_until:
            summary = self._enrolments.summary()
            self._devices = summary | {"runtimes": _most(summary["runtimes"])}
            took = self._monotonic() - begin
            self._devices_until = begin + max(_SHORTEST_REST, took * _IDLE_SHARE)
        return self._devices


def rounds_over(store: Store) -> dict[tuple[str, str], int]:
    """Numbers of rounds that are over, by outcome and task.

    Raises:
        StoreError: the database failed.
    """
    columns = (ROUNDS.c.phase, ROUNDS.c.task)
    with store.database.reading() as connection:
        rows = connection.execute(select(*columns, func.count()).where(OVER).group_by(*columns)).all()
    return {(outcome, task): count for outcome, task, count in rows}


def latest(store: Store, task: str) -> Latest:
    """The last round of a task that was committed.

    Raises:
        StoreError: the database failed.
    """
    query = (
        select(ROUNDS.c.ended, ROUNDS.c.loss, ROUNDS.c.accuracy)
        .where(ROUNDS.c.phase == "committed", ROUNDS.c.task == task)
        .order_by(ROUNDS.c.id.desc())
        .limit(1)
    )
    with store.database.reading() as connection:
        row = connection.execute(query).one_or_none()
    return Latest(None, None, None) if row is None else Latest(row.ended, row.loss, row.accuracy)


def _most(runtimes: dict[str, int]) -> dict[str, int]:
    """The most usual runtimes; the others together as one."""
    ordered = sorted(runtimes.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ordered[_MOST_RUNTIMES:])
    return dict(ordered[:_MOST_RUNTIMES]) | ({"others": rest} if rest else {})
