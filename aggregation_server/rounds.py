"""`Round`: the state machine of one round, pure. The clock and the random numbers come in as arguments.

The phases and their words are those of Bonawitz et al. 2019, section 2.2:

    SELECTION ──cohort full, or timeout with enough devices──► REPORTING ──goal reached, or timeout──► COMMITTING
        │                                                          │        with enough reports            │
        └──timeout with too few devices──► ABANDONED ◄─────────────┴──timeout with too few reports     COMMITTED

A round holds counts, not devices: what it has to know of the device that asks, its `Standing`, comes in with the
question, so that a round of ten thousand costs no more than one of ten. Every transition returns a new `Round`; a
caller may drop it where what the device sent does not validate.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

from device_runtime.errors import InputError
from device_runtime.messages import ReportReply, TaskKind

UNKNOWN_TOKEN = ReportReply("refused", "unknown_token", "no round of this server gave out this token")


class Phase(Enum):
    """Where a round stands."""

    SELECTION = "selection"
    REPORTING = "reporting"
    COMMITTING = "committing"
    """Enough was reported; the new weights are not stored yet."""
    COMMITTED = "committed"
    ABANDONED = "abandoned"


@dataclass(frozen=True)
class RoundConfig:
    """How many devices a round wants, and how long it waits for them.

    Attributes:
        goal_count: reports that are aggregated at most; the round commits as soon as it has them.
        over_selection: devices accepted per report wanted, since some drop out.
        minimum_reports: with fewer, the round is abandoned; also the smallest cohort that starts.
        selection_timeout: seconds to wait for a full cohort.
        reporting_timeout: seconds from the start to the deadline for reports.
        selection_seconds: how long a selection stays open at least. The cohort is then a sample of all devices that
            check in within that time, each with the same chance, and not the first ones.
    """

    goal_count: int
    over_selection: float = 1.3
    minimum_reports: int = 1
    selection_timeout: float = 60.0
    reporting_timeout: float = 180.0
    selection_seconds: float = 0.0

    def __post_init__(self) -> None:
        _check(self.goal_count >= 1, "goal_count", "at least 1", self.goal_count)
        _check(1 <= self.over_selection <= 100, "over_selection", "from 1 to 100", self.over_selection)
        _check(
            1 <= self.minimum_reports <= self.goal_count,
            "minimum_reports",
            f"from 1 to the goal count, {self.goal_count}",
            self.minimum_reports,
        )
        _check(0 < self.selection_timeout < math.inf, "selection_timeout", "above 0 seconds", self.selection_timeout)
        _check(0 < self.reporting_timeout < math.inf, "reporting_timeout", "above 0 seconds", self.reporting_timeout)
        _check(
            0 <= self.selection_seconds <= self.selection_timeout,
            "selection_seconds",
            f"from 0 to the selection timeout, {self.selection_timeout:g}",
            self.selection_seconds,
        )

    @property
    def cohort_size(self) -> int:
        """Devices accepted at most: ⌈goal_count · over_selection⌉."""
        # 10 · 1.1 is 11.000000000000002 in floating point, and means 11.
        return math.ceil(round(self.goal_count * self.over_selection, 9))


@dataclass(frozen=True)
class Standing:
    """What a round knows of a device that has checked in to it.

    Attributes:
        seat: its place in the cohort, from 0; None where it has none, or lost it to another device.
        reported: its report was counted.
    """

    seat: int | None
    reported: bool = False


@dataclass(frozen=True)
class Decision:
    """The answer to a check-in; `standing` is the device's from now on, whose seat another one may have had before."""

    verdict: Literal["accept", "reject"]
    reason: str = ""
    standing: Standing | None = None


@dataclass(frozen=True)
class Round:
    """One attempt at a round; an abandoned round is followed by a fresh one with the same number.

    Attributes:
        id: of the attempt.
        number: of a training, the version that it makes, from 1; of an evaluation, the version that it looks at.
        task: what its devices do.
        config: its `RoundConfig`.
        since: when the current phase began, in seconds of the server's clock.
        phase: see `Phase`.
        offered: devices that the selection has looked at.
        cohort: devices that have a seat.
        reported: reports that were counted.
        reason: why it was abandoned, a short word.
    """

    id: int
    number: int
    task: TaskKind
    config: RoundConfig
    since: float
    phase: Phase = Phase.SELECTION
    offered: int = 0
    cohort: int = 0
    reported: int = 0
    reason: str = ""

    @property
    def deadline(self) -> float:
        """When the current phase times out; never, once the round is decided."""
        if self.phase is Phase.SELECTION:
            return self.since + self.config.selection_timeout
        if self.phase is Phase.REPORTING:
            return self.since + self.config.reporting_timeout
        return math.inf

    @property
    def due(self) -> float:
        """When `tick` may next do something without another request."""
        if self.phase is Phase.SELECTION and self.cohort >= self.config.cohort_size:
            return self.since + self.config.selection_seconds
        return self.deadline

    @property
    def over(self) -> bool:
        """Whether it is committed or abandoned."""
        return self.phase in (Phase.COMMITTED, Phase.ABANDONED)

    def tick(self, now: float) -> Round:
        """The round at the time `now`: every transition that is due is made here."""
        config, late = self.config, now >= self.deadline
        if self.phase is Phase.SELECTION:
            full = self.cohort >= config.cohort_size and now >= self.since + config.selection_seconds
            if full or (late and self.cohort >= config.minimum_reports):
                return replace(self, phase=Phase.REPORTING, since=now)
            if late:
                return self.abandoned("selection_timeout", now)
        elif self.phase is Phase.REPORTING:
            # Where the whole of a small cohort has reported, nothing is left to wait for. It may be smaller than the
            # minimum, where the server was started anew with another one.
            all_there = self.reported >= min(config.goal_count, self.cohort)
            if (all_there or late) and self.reported >= config.minimum_reports:
                return replace(self, phase=Phase.COMMITTING, since=now)
            if late:
                return self.abandoned("reporting_timeout", now)
        return self

    def check_in(self, standing: Standing | None, now: float, rng: random.Random) -> tuple[Round, Decision]:
        """Give a device a seat in the cohort, or reject it.

        A device that has a seat already is accepted again: its acceptance was lost on the way, or it was started anew.
        Seats are given by reservoir sampling (Vitter 1985, algorithm R): once all are taken, the n-th device gets one
        with the probability seats/n, and it is another's.

        Args:
            standing: the device's in this round; None where it has not checked in to it.
            now: the time.
            rng: decides who gets a seat that is taken.

        Returns:
            The round after it, and ``accept``, or ``reject`` with the reason ``already_reported``, ``not_selected``,
            ``cohort_full`` or ``round_started``.
        """
        current = self.tick(now)
        if standing is not None and standing.reported:
            return current, Decision("reject", "already_reported")
        if standing is not None and standing.seat is not None and current.phase in (Phase.SELECTION, Phase.REPORTING):
            return current, Decision("accept", standing=standing)
        if current.phase is not Phase.SELECTION:
            full = current.cohort >= current.config.cohort_size
            return current, Decision("reject", "cohort_full" if full else "round_started")
        if standing is not None:  # it has been looked at: asking again gives no second chance
            return current, Decision("reject", "not_selected")
        seats, offered = current.config.cohort_size, current.offered + 1
        current = replace(current, offered=offered)
        if current.cohort < seats:
            taken = Standing(current.cohort)
            return replace(current, cohort=current.cohort + 1).tick(now), Decision("accept", standing=taken)
        seat = rng.randrange(offered)
        if seat < seats:
            return current, Decision("accept", standing=Standing(seat))
        return current, Decision("reject", "not_selected", Standing(None))

    def report(self, standing: Standing | None, now: float) -> tuple[Round, ReportReply]:
        """Count the report of a device; its content is for the caller to validate.

        Returns:
            The round after it, and ``accepted``; ``aborted`` with the reason ``late``, ``abandoned`` or
            ``not_selected``; or ``refused`` with ``unknown_token``, ``duplicate`` or ``not_started``.
        """
        current = self.tick(now)
        if standing is None:
            return current, UNKNOWN_TOKEN
        if standing.reported:
            return current, ReportReply("refused", "duplicate", "this token's report was already counted")
        if standing.seat is None:
            return current, ReportReply("aborted", "not_selected", f"round {self.number} goes on with other devices")
        if current.phase is Phase.SELECTION:
            message = f"round {self.number} has not started: ask for the configuration first"
            return current, ReportReply("refused", "not_started", message)
        if current.phase is Phase.ABANDONED:
            return current, ReportReply("aborted", "abandoned", f"round {self.number} was abandoned: {current.reason}")
        if current.phase is not Phase.REPORTING:
            return current, ReportReply("aborted", "late", f"round {self.number} already has all its reports")
        return replace(current, reported=current.reported + 1).tick(now), ReportReply("accepted")

    def committed(self, now: float) -> Round:
        """COMMITTING → COMMITTED: the new weights are stored."""
        if self.phase is not Phase.COMMITTING:
            raise ValueError(f"round {self.number} is {self.phase.value}, not {Phase.COMMITTING.value}")
        return replace(self, phase=Phase.COMMITTED, since=now)

    def abandoned(self, reason: str, now: float) -> Round:
        """Any phase but the last two → ABANDONED."""
        if self.over:
            raise ValueError(f"round {self.number} is {self.phase.value} already")
        return replace(self, phase=Phase.ABANDONED, since=now, reason=reason)


def _check(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise InputError(f"round: {name} should be {expected}, not {got!r}")
