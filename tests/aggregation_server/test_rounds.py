"""The state machine of a round: each transition once, the selection's chances, and arbitrary interleavings of all."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aggregation_server.rounds import Decision, Phase, Round, RoundConfig, Standing
from device_runtime.errors import InputError
from device_runtime.messages import ReportReply

CONFIG = RoundConfig(goal_count=2, minimum_reports=1, selection_timeout=10, reporting_timeout=20)
RNG = random.Random(0)
OVER = (Phase.COMMITTED, Phase.ABANDONED)


def opened(config: RoundConfig = CONFIG) -> Round:
    """A round that opened at time 0."""
    return Round(1, 1, "training", config, 0.0)


def selected(count: int, config: RoundConfig = CONFIG) -> Round:
    """The same with so many devices, in the seats 0, 1, …"""
    current = opened(config)
    for seat in range(count):
        current, decision = current.check_in(None, 0.0, RNG)
        assert decision == Decision("accept", standing=Standing(seat))
    return current


def started(count: int, config: RoundConfig = CONFIG) -> Round:
    """The same after the selection's timeout, at time 10."""
    current = selected(count, config).tick(10)
    assert current.phase is Phase.REPORTING
    return current


def reported(current: Round, count: int, now: float) -> Round:
    """The same with so many reports."""
    for seat in range(count):
        current, reply = current.report(Standing(seat), now)
        assert reply == ReportReply("accepted")
    return current


@pytest.mark.parametrize(
    ("goal", "over", "size"), [(2, 1.3, 3), (10, 1.3, 13), (10, 1.1, 11), (7, 1.0, 7), (1, 1.3, 2)]
)
def test_cohort_size_is_goal_times_over_selection_rounded_up(goal: int, over: float, size: int) -> None:
    assert RoundConfig(goal, over).cohort_size == size


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"goal_count": 0}, "round: goal_count should be at least 1, not 0"),
        ({"goal_count": 2, "over_selection": 0.9}, "round: over_selection should be from 1 to 100, not 0.9"),
        ({"goal_count": 2, "over_selection": math.nan}, "round: over_selection should be from 1 to 100, not nan"),
        (
            {"goal_count": 2, "minimum_reports": 3},
            "round: minimum_reports should be from 1 to the goal count, 2, not 3",
        ),
        (
            {"goal_count": 2, "minimum_reports": 0},
            "round: minimum_reports should be from 1 to the goal count, 2, not 0",
        ),
        ({"goal_count": 2, "selection_timeout": 0}, "round: selection_timeout should be above 0 seconds, not 0"),
        (
            {"goal_count": 2, "reporting_timeout": math.inf},
            "round: reporting_timeout should be above 0 seconds, not inf",
        ),
        (
            {"goal_count": 2, "selection_seconds": 61},
            "round: selection_seconds should be from 0 to the selection timeout, 60, not 61",
        ),
        (
            {"goal_count": 2, "selection_seconds": math.nan},
            "round: selection_seconds should be from 0 to the selection timeout, 60, not nan",
        ),
    ],
)
def test_config_names_the_field_that_is_out_of_range(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        RoundConfig(**fields)
    assert str(caught.value) == message


def test_a_full_cohort_starts_the_round_at_once() -> None:
    assert selected(2).phase is Phase.SELECTION
    assert selected(3).phase is Phase.REPORTING


def test_selection_timeout_starts_with_the_minimum() -> None:
    current = selected(1)
    assert current.tick(9.99) is current
    assert (current.tick(10).phase, current.tick(10).since) == (Phase.REPORTING, 10)


def test_selection_timeout_abandons_below_the_minimum() -> None:
    current = selected(1, RoundConfig(2, minimum_reports=2, selection_timeout=10)).tick(10)
    assert (current.phase, current.reason, current.over) == (Phase.ABANDONED, "selection_timeout", True)


@pytest.mark.parametrize(
    ("current", "standing", "reason"),
    [
        (selected(3), None, "cohort_full"),
        (started(1), None, "round_started"),
        (reported(started(1), 1, 11), None, "round_started"),
        (reported(started(1), 1, 11), Standing(0), "round_started"),
        (reported(selected(3), 1, 0), Standing(0, reported=True), "already_reported"),
        (selected(1), Standing(None), "not_selected"),
        (started(1), Standing(None), "round_started"),
        (selected(3), Standing(None), "cohort_full"),
        (selected(1).abandoned("paused", 1), None, "round_started"),
    ],
)
def test_check_in_rejects_with_a_reason(current: Round, standing: Standing | None, reason: str) -> None:
    after, decision = current.check_in(standing, current.since, RNG)
    assert decision == Decision("reject", reason)
    assert after == current


@pytest.mark.parametrize("current", [selected(1), started(1), selected(3)])
def test_a_check_in_whose_acceptance_was_lost_is_accepted_again(current: Round) -> None:
    after, decision = current.check_in(Standing(0), current.since, RNG)
    assert decision == Decision("accept", standing=Standing(0))
    assert after == current


def test_a_check_in_after_the_selection_timeout_is_rejected_without_a_tick_before_it() -> None:
    after, decision = selected(1).check_in(None, 10, RNG)
    assert (decision.reason, after.phase, after.cohort) == ("round_started", Phase.REPORTING, 1)


LONG = RoundConfig(goal_count=3, over_selection=1, selection_timeout=10, selection_seconds=5)


def test_a_selection_stays_open_for_its_time_and_no_longer() -> None:
    current = selected(3, LONG)
    assert (current.phase, current.due) == (Phase.SELECTION, 5.0)
    assert current.tick(4.99) is current
    assert current.tick(5).phase is Phase.REPORTING
    after, decision = current.check_in(None, 5, RNG)
    assert (after.phase, decision.reason) == (Phase.REPORTING, "cohort_full")


def test_a_selection_whose_cohort_is_not_full_in_its_time_waits_for_it() -> None:
    current = selected(2, LONG).tick(6)
    assert (current.phase, current.due) == (Phase.SELECTION, 10.0)
    after, _ = current.check_in(None, 6, RNG)
    assert after.phase is Phase.REPORTING


def drawn(devices: int, rng: random.Random, config: RoundConfig = LONG) -> tuple[int, ...]:
    """Which of so many devices, in the order of their check-ins, have a seat in the end."""
    current, seats = opened(config), dict[int, int]()
    for device in range(devices):
        current, decision = current.check_in(None, 1.0, rng)
        assert decision.standing is not None
        if decision.standing.seat is not None:
            assert decision.verdict == "accept"
            seats[decision.standing.seat] = device
        else:
            assert decision == Decision("reject", "not_selected", Standing(None))
    assert (current.offered, current.cohort) == (devices, min(devices, config.cohort_size))
    assert len(seats) == current.cohort
    return tuple(sorted(seats.values()))


def test_every_device_that_checks_in_within_the_selection_has_the_same_chance() -> None:
    """Pearson's χ² over all the cohorts that there can be, and each device's share of them."""
    rng, draws = random.Random(7), 6000
    cohorts = Counter(drawn(6, rng) for _ in range(draws))
    assert len(cohorts) == math.comb(6, 3)
    expected = draws / 20
    assert (
        sum((count - expected) ** 2 / expected for count in cohorts.values()) < 50.8
    )  # 99.99 % of 19 degrees of freedom
    seats = Counter(device for cohort, count in cohorts.items() for device in cohort for _ in range(count))
    assert max(abs(count - draws / 2) for count in seats.values()) < 4 * math.sqrt(draws / 4)


def algorithm_r(devices: int, seats: int, rng: random.Random) -> tuple[int, ...]:
    """Vitter's reservoir, as in the paper."""
    reservoir = list(range(min(seats, devices)))
    for device in range(seats, devices):
        place = rng.randrange(device + 1)
        if place < seats:
            reservoir[place] = device
    return tuple(sorted(reservoir))


@given(st.integers(1, 8), st.integers(0, 40), st.integers(0, 2**32))
def test_the_cohort_is_the_reservoir_of_its_seed(seats: int, devices: int, seed: int) -> None:
    config = RoundConfig(goal_count=seats, over_selection=1, selection_timeout=10, selection_seconds=5)
    assert drawn(devices, random.Random(seed), config) == algorithm_r(devices, seats, random.Random(seed))


def test_the_goal_count_of_reports_closes_the_round() -> None:
    current, first = selected(3).report(Standing(2), 1)
    assert (first.verdict, current.phase) == ("accepted", Phase.REPORTING)
    current, second = current.report(Standing(0), 2)
    assert (second.verdict, current.phase, current.since) == ("accepted", Phase.COMMITTING, 2)
    after, third = current.report(Standing(1), 3)
    assert third == ReportReply("aborted", "late", "round 1 already has all its reports")
    assert after == current
    assert current.committed(4).report(Standing(1), 5)[1] == third


def test_a_small_cohort_is_not_waited_for_after_its_last_report() -> None:
    assert reported(started(1), 1, 11).phase is Phase.COMMITTING


def test_a_cohort_below_the_minimum_of_a_server_that_was_started_anew_is_not_enough() -> None:
    config = replace(CONFIG, minimum_reports=2)
    current = reported(replace(started(1), config=config), 1, 11)
    assert current.phase is Phase.REPORTING
    current = current.tick(30)
    assert (current.phase, current.reason) == (Phase.ABANDONED, "reporting_timeout")


def test_reporting_deadline_commits_with_the_minimum() -> None:
    current = reported(started(2), 1, 11)
    assert (current.due, current.deadline) == (30, 30)
    assert current.tick(29.99).phase is Phase.REPORTING
    assert current.tick(30).phase is Phase.COMMITTING
    assert current.tick(30).due == math.inf


def test_reporting_deadline_abandons_below_the_minimum() -> None:
    current, reply = started(2).report(Standing(0), 30)
    assert (current.phase, current.reason) == (Phase.ABANDONED, "reporting_timeout")
    assert reply == ReportReply("aborted", "abandoned", "round 1 was abandoned: reporting_timeout")


@pytest.mark.parametrize(
    ("current", "standing", "reply"),
    [
        (selected(3), None, ReportReply("refused", "unknown_token", "no round of this server gave out this token")),
        (
            selected(1),
            Standing(0),
            ReportReply("refused", "not_started", "round 1 has not started: ask for the configuration first"),
        ),
        (
            reported(started(1), 1, 11),
            Standing(0, reported=True),
            ReportReply("refused", "duplicate", "this token's report was already counted"),
        ),
        (selected(3), Standing(None), ReportReply("aborted", "not_selected", "round 1 goes on with other devices")),
    ],
)
def test_a_report_that_does_not_count_has_a_reason(
    current: Round, standing: Standing | None, reply: ReportReply
) -> None:
    assert current.report(standing, current.since) == (current, reply)


def test_a_report_that_is_not_kept_leaves_its_seat_usable() -> None:
    current = selected(3)
    current.report(Standing(0), 1)
    assert current.report(Standing(0), 2)[1].verdict == "accepted"


def test_only_a_round_with_its_reports_is_committed_and_none_ends_twice() -> None:
    ready = reported(started(1), 1, 11)
    assert ready.committed(12) == replace(ready, phase=Phase.COMMITTED, since=12)
    for current in (selected(1), started(1), ready.committed(12), ready.abandoned("non_finite", 12)):
        with pytest.raises(ValueError, match=f"^round 1 is {current.phase.value}, not committing$"):
            current.committed(13)
    for current in (selected(1), started(1), ready):
        ended = current.abandoned("paused", 12)
        assert (ended.phase, ended.reason, ended.since) == (Phase.ABANDONED, "paused", 12)
    for current in (ready.committed(12), ready.abandoned("non_finite", 12)):
        with pytest.raises(ValueError, match=f"^round 1 is {current.phase.value} already$"):
            current.abandoned("paused", 13)


_NEXT = {
    Phase.SELECTION: {Phase.REPORTING, Phase.ABANDONED},
    Phase.REPORTING: {Phase.COMMITTING, Phase.ABANDONED},
    Phase.COMMITTING: {Phase.COMMITTED, Phase.ABANDONED},
    Phase.COMMITTED: set(),
    Phase.ABANDONED: set(),
}


class Interleavings(RuleBasedStateMachine):
    """Devices check in and report, and both again, while time passes as it likes; the test keeps their standings."""

    @initialize(goal=st.integers(1, 5), minimum=st.integers(1, 5), seconds=st.sampled_from([0.0, 4.0, 10.0]))
    def open(self, goal: int, minimum: int, seconds: float) -> None:
        self.goal, self.minimum, self.now = goal, min(goal, minimum), 0.0
        timeouts = {"selection_timeout": 10, "reporting_timeout": 10, "selection_seconds": seconds}
        self.round = opened(RoundConfig(goal, minimum_reports=self.minimum, **timeouts))
        self.rng = random.Random(goal)
        self.standings: dict[int, Standing] = {}

    def become(self, after: Round) -> None:
        before = self.round
        if before.phase is not after.phase:
            # One call may make two transitions: the last check-in of a cohort, or a late report.
            assert after.phase in _NEXT[before.phase] | {p for q in _NEXT[before.phase] for p in _NEXT[q]}
        if before.over:
            assert after == before, "a finished round changed"
        self.round = after

    @rule(client=st.integers(0, 11))
    def check_in(self, client: int) -> None:
        standing, before = self.standings.get(client), self.round.tick(self.now)
        after, decision = self.round.check_in(standing, self.now, self.rng)
        if standing is None and decision.standing is not None:
            assert before.phase is Phase.SELECTION
            for other, held in self.standings.items():
                if held.seat is not None and held.seat == decision.standing.seat:
                    self.standings[other] = Standing(None)
            self.standings[client] = decision.standing
        elif decision.verdict == "accept":
            assert standing is not None and standing.seat is not None and not standing.reported
            assert decision.standing == standing
        self.become(after)

    @rule(client=st.integers(0, 11))
    def report(self, client: int) -> None:
        standing = self.standings.get(client)
        after, reply = self.round.report(standing, self.now)
        if reply.verdict == "accepted":
            assert standing is not None and standing.seat is not None and not standing.reported
            assert self.round.tick(self.now).phase is Phase.REPORTING
            self.standings[client] = replace(standing, reported=True)
        elif standing is None:
            assert reply.reason == "unknown_token"
        self.become(after)

    @rule(seconds=st.sampled_from([0.0, 0.5, 4.0, 9.99, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def tick(self) -> None:
        before = self.round
        self.become(before.tick(self.now))
        assert self.round.tick(self.now) == self.round, "a tick at one instant leaves something to do"
        assert (self.round == before) or self.now >= before.due, "something happened before it was due"
        assert self.round.over or self.round.due > self.now or self.round.phase is Phase.COMMITTING

    @precondition(lambda self: not self.round.over)
    @rule()
    def stop(self) -> None:
        self.become(self.round.abandoned("rollback", self.now))

    @precondition(lambda self: self.round.phase is Phase.COMMITTING)
    @rule()
    def commit(self) -> None:
        self.become(self.round.committed(self.now))

    @invariant()
    def no_more_than_the_goal_is_counted_and_each_device_once(self) -> None:
        assert self.round.reported == sum(standing.reported for standing in self.standings.values()) <= self.goal

    @invariant()
    def seats_are_those_of_the_cohort_and_each_has_one_device(self) -> None:
        seats = [standing.seat for standing in self.standings.values() if standing.seat is not None]
        assert sorted(seats) == list(range(self.round.cohort))
        assert self.round.cohort <= -(-13 * self.goal // 10)

    @invariant()
    def a_commit_has_the_minimum_of_reports(self) -> None:
        if self.round.phase in (Phase.COMMITTING, Phase.COMMITTED):
            assert self.round.reported >= self.minimum


Interleavings.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestInterleavings = Interleavings.TestCase
