"""`Round`: the state machine of one round, pure. The clock and the tokens come in as arguments.

The phases and their words are those of Bonawitz et al. 2019, section 2.2:

    SELECTION ──cohort full, or timeout with enough devices──► REPORTING ──goal reached, or timeout──► COMMITTING
        │                                                          │        with enough reports            │
        └──timeout with too few devices──► ABANDONED ◄─────────────┴──timeout with too few reports     COMMITTED

Every transition returns a new `Round`. A caller may therefore ask what a report would lead to, look at the
report's content, and drop the answer if the content does not validate: the old round has not changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from device_runtime.errors import InputError
from device_runtime.messages import CheckInReply, ReportReply


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
    """

    goal_count: int
    over_selection: float = 1.3
    minimum_reports: int = 1
    selection_timeout: float = 60.0
    reporting_timeout: float = 180.0

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

    @property
    def cohort_size(self) -> int:
        """Devices accepted at most: ⌈goal_count · over_selection⌉."""
        # 10 · 1.1 is 11.000000000000002 in floating point, and means 11.
        return math.ceil(round(self.goal_count * self.over_selection, 9))


@dataclass(frozen=True)
class Round:
    """One attempt at a round; an abandoned round is followed by a fresh one with the same number.

    Attributes:
        number: from 1.
        config: its `RoundConfig`.
        since: when the current phase began, in seconds of the caller's monotonic clock.
        phase: see `Phase`.
        cohort: the accepted devices, token → client.
        reported: the tokens whose report was counted.
        reason: why it was abandoned, a short word.
    """

    number: int
    config: RoundConfig
    since: float
    phase: Phase = Phase.SELECTION
    cohort: Mapping[str, str] = field(default_factory=dict)
    reported: frozenset[str] = frozenset()
    reason: str = ""

    @property
    def deadline(self) -> float:
        """When the current phase times out; never, once the round is decided."""
        if self.phase is Phase.SELECTION:
            return self.since + self.config.selection_timeout
        if self.phase is Phase.REPORTING:
            return self.since + self.config.reporting_timeout
        return math.inf

    def tick(self, now: float) -> Round:
        """The round at the time `now`: every transition that is due is made here."""
        config, late = self.config, now >= self.deadline
        if self.phase is Phase.SELECTION:
            enough = len(self.cohort) >= config.minimum_reports
            if len(self.cohort) >= config.cohort_size or (late and enough):
                return replace(self, phase=Phase.REPORTING, since=now)
            if late:
                return self._abandon("selection_timeout", now)
        elif self.phase is Phase.REPORTING:
            # Where the whole of a small cohort has reported, nothing is left to wait for.
            if len(self.reported) >= min(config.goal_count, len(self.cohort)):
                return replace(self, phase=Phase.COMMITTING, since=now)
            if late and len(self.reported) >= config.minimum_reports:
                return replace(self, phase=Phase.COMMITTING, since=now)
            if late:
                return self._abandon("reporting_timeout", now)
        return self

    def check_in(self, client: str, token: str, now: float) -> tuple[Round, CheckInReply]:
        """Accept a client under this fresh token, or reject it.

        A client that is in the cohort already is given its token again: its acceptance was lost on the way, or it
        was started anew.

        Returns:
            The round after it, and ``accept``, or ``reject`` with the reason ``already_reported``,
            ``cohort_full`` or ``round_started``.
        """
        current = self.tick(now)
        held = next((token for token, member in current.cohort.items() if member == client), None)
        if held in current.reported:
            return current, CheckInReply("reject", "already_reported")
        if held is not None and current.phase in (Phase.SELECTION, Phase.REPORTING):
            return current, CheckInReply("accept", round_number=self.number, token=held)
        if len(current.cohort) >= current.config.cohort_size:
            return current, CheckInReply("reject", "cohort_full")
        if current.phase is not Phase.SELECTION:
            return current, CheckInReply("reject", "round_started")
        joined = replace(current, cohort={**current.cohort, token: client})
        return joined.tick(now), CheckInReply("accept", round_number=self.number, token=token)

    def report(self, token: str, now: float) -> tuple[Round, ReportReply]:
        """Count the report that came with this token; its content is for the caller to validate.

        Returns:
            The round after it, and ``accepted``; ``aborted`` with the reason ``late`` or ``abandoned``; or
            ``refused`` with ``unknown_token``, ``duplicate`` or ``not_started``.
        """
        current = self.tick(now)
        if token not in current.cohort:
            return current, ReportReply("refused", "unknown_token", "no round of this server gave out this token")
        if token in current.reported:
            return current, ReportReply("refused", "duplicate", "this token's report was already counted")
        if current.phase is Phase.SELECTION:
            message = f"round {self.number} has not started: ask for the configuration first"
            return current, ReportReply("refused", "not_started", message)
        if current.phase is Phase.ABANDONED:
            return current, ReportReply("aborted", "abandoned", f"round {self.number} was abandoned: {current.reason}")
        if current.phase is not Phase.REPORTING:
            return current, ReportReply("aborted", "late", f"round {self.number} already has all its reports")
        return replace(current, reported=current.reported | {token}).tick(now), ReportReply("accepted")

    def committed(self, now: float) -> Round:
        """COMMITTING → COMMITTED: the new weights are stored."""
        self._require(Phase.COMMITTING)
        return replace(self, phase=Phase.COMMITTED, since=now)

    def abandoned(self, reason: str, now: float) -> Round:
        """COMMITTING → ABANDONED: the reports do not give weights that can be used."""
        self._require(Phase.COMMITTING)
        return self._abandon(reason, now)

    def _abandon(self, reason: str, now: float) -> Round:
        return replace(self, phase=Phase.ABANDONED, since=now, reason=reason)

    def _require(self, phase: Phase) -> None:
        if self.phase is not phase:
            raise ValueError(f"round {self.number} is {self.phase.value}, not {phase.value}")


def _check(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise InputError(f"round: {name} should be {expected}, not {got!r}")
