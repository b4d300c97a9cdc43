"""The state machine of a round: each transition once, and arbitrary interleavings of all of them."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aggregation_server.rounds import Phase, Round, RoundConfig
from device_runtime.errors import InputError

CONFIG = RoundConfig(goal_count=2, minimum_reports=1, selection_timeout=10, reporting_timeout=20)


def selected(*clients: str, config: RoundConfig = CONFIG) -> Round:
    """A round that opened at time 0, with these clients under tokens of their names."""
    current = Round(1, config, 0.0)
    for client in clients:
        current, reply = current.check_in(client, f"token-{client}", 0.0)
        assert reply.decision == "accept"
    return current


def started(*clients: str, config: RoundConfig = CONFIG) -> Round:
    """The same after the selection's timeout, at time 10."""
    current = selected(*clients, config=config).tick(10)
    assert current.phase is Phase.REPORTING
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
    ],
)
def test_config_names_the_field_that_is_out_of_range(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        RoundConfig(**fields)
    assert str(caught.value) == message


def test_a_full_cohort_starts_the_round_at_once() -> None:
    assert selected("a", "b").phase is Phase.SELECTION
    assert selected("a", "b", "c").phase is Phase.REPORTING


def test_selection_timeout_starts_with_the_minimum() -> None:
    current = selected("a")
    assert current.tick(9.99) is current
    assert current.tick(10).phase is Phase.REPORTING


def test_selection_timeout_abandons_below_the_minimum() -> None:
    current = selected("a", config=RoundConfig(2, minimum_reports=2, selection_timeout=10)).tick(10)
    assert (current.phase, current.reason) == (Phase.ABANDONED, "selection_timeout")


@pytest.mark.parametrize(
    ("current", "client", "reason"),
    [
        (selected("a", "b", "c"), "d", "cohort_full"),
        (started("a"), "d", "round_started"),
        (selected("a", "b", "c").report("token-a", 0)[0], "a", "already_reported"),
    ],
)
def test_check_in_rejects_with_a_reason(current: Round, client: str, reason: str) -> None:
    after, reply = current.check_in(client, "new", current.since)
    assert (reply.decision, reply.reason, reply.token) == ("reject", reason, "")
    assert after == current


@pytest.mark.parametrize("current", [selected("a"), started("a"), selected("a", "b", "c")])
def test_a_check_in_whose_acceptance_was_lost_is_given_its_token_again(current: Round) -> None:
    after, reply = current.check_in("a", "new", current.since)
    assert (reply.decision, reply.round_number, reply.token) == ("accept", 1, "token-a")
    assert after == current


def test_a_check_in_after_the_selection_timeout_is_rejected_without_a_tick_before_it() -> None:
    after, reply = selected("a").check_in("b", "new", 10)
    assert (reply.reason, after.phase, len(after.cohort)) == ("round_started", Phase.REPORTING, 1)


def test_the_goal_count_of_reports_closes_the_round() -> None:
    current = selected("a", "b", "c")
    current, first = current.report("token-c", 1)
    assert (first.verdict, current.phase) == ("accepted", Phase.REPORTING)
    current, second = current.report("token-a", 2)
    assert (second.verdict, current.phase) == ("accepted", Phase.COMMITTING)
    current, third = current.report("token-b", 3)
    assert (third.verdict, third.reason) == ("aborted", "late")
    assert third.message == "round 1 already has all its reports"
    assert len(current.reported) == 2


def test_a_small_cohort_is_not_waited_for_after_its_last_report() -> None:
    current, _ = started("a").report("token-a", 11)
    assert current.phase is Phase.COMMITTING


def test_reporting_deadline_commits_with_the_minimum() -> None:
    current, _ = started("a", "b").report("token-a", 11)
    assert current.tick(29.99).phase is Phase.REPORTING
    assert current.tick(30).phase is Phase.COMMITTING


def test_reporting_deadline_abandons_below_the_minimum() -> None:
    current, reply = started("a", "b").report("token-a", 30)
    assert (current.phase, current.reason) == (Phase.ABANDONED, "reporting_timeout")
    assert (reply.verdict, reply.reason) == ("aborted", "abandoned")
    assert reply.message == "round 1 was abandoned: reporting_timeout"


@pytest.mark.parametrize(
    ("current", "token", "reason", "message"),
    [
        (selected("a", "b", "c"), "other", "unknown_token", "no round of this server gave out this token"),
        (selected("a"), "token-a", "not_started", "round 1 has not started: ask for the configuration first"),
        (started("a").report("token-a", 11)[0], "token-a", "duplicate", "this token's report was already counted"),
    ],
)
def test_report_refuses_with_a_reason(current: Round, token: str, reason: str, message: str) -> None:
    after, reply = current.report(token, current.since)
    assert (reply.verdict, reply.reason, reply.message) == ("refused", reason, message)
    assert after == current


def test_a_report_that_is_not_kept_leaves_its_token_usable() -> None:
    current = selected("a", "b", "c")
    current.report("token-a", 1)
    _, reply = current.report("token-a", 2)
    assert reply.verdict == "accepted"


def test_only_a_round_that_is_ready_can_be_committed_or_abandoned_by_its_caller() -> None:
    ready = started("a").report("token-a", 11)[0]
    for current in (selected("a"), started("a"), ready.committed(12), ready.abandoned("non_finite", 12)):
        with pytest.raises(ValueError, match=f"round 1 is {current.phase.value}, not committing"):
            current.committed(13)
        with pytest.raises(ValueError, match=f"round 1 is {current.phase.value}, not committing"):
            current.abandoned("non_finite", 13)


_NEXT = {
    Phase.SELECTION: {Phase.REPORTING, Phase.ABANDONED},
    Phase.REPORTING: {Phase.COMMITTING, Phase.ABANDONED},
    Phase.COMMITTING: {Phase.COMMITTED, Phase.ABANDONED},
    Phase.COMMITTED: set(),
    Phase.ABANDONED: set(),
}


class Interleavings(RuleBasedStateMachine):
    """Devices that check in, report, report twice, and invent tokens, while time passes as it likes."""

    @initialize(goal=st.integers(1, 5), minimum=st.integers(1, 5))
    def open(self, goal: int, minimum: int) -> None:
        self.goal, self.minimum, self.now = goal, min(goal, minimum), 0.0
        config = RoundConfig(goal, minimum_reports=self.minimum, selection_timeout=10, reporting_timeout=10)
        self.round = Round(1, config, self.now)
        self.tokens: list[str] = []
        self.counted: Counter[str] = Counter()

    def become(self, after: Round) -> None:
        before = self.round
        if before.phase is not after.phase:
            # One call may make two transitions: the last check-in of a cohort, or a late report.
            assert after.phase in _NEXT[before.phase] | {p for q in _NEXT[before.phase] for p in _NEXT[q]}
        if not _NEXT[before.phase]:
            assert after == before, "a finished round changed"
        self.round = after

    @rule(client=st.integers(0, 9))
    def check_in(self, client: int) -> None:
        token = f"token-{len(self.tokens)}"
        after, reply = self.round.check_in(f"client-{client}", token, self.now)
        if reply.token == token:
            self.tokens.append(token)
            assert f"client-{client}" not in self.round.cohort.values()
        elif reply.decision == "accept":
            assert self.round.cohort[reply.token] == f"client-{client}"
            assert reply.token not in self.round.reported
        self.become(after)

    @rule(choice=st.integers(0, 99))
    def report(self, choice: int) -> None:
        token = self.tokens[choice % len(self.tokens)] if self.tokens else "none"
        after, reply = self.round.report(token, self.now)
        if reply.verdict == "accepted":
            self.counted[token] += 1
            assert self.round.tick(self.now).phase is Phase.REPORTING
        self.become(after)

    @rule()
    def report_with_an_invented_token(self) -> None:
        after, reply = self.round.report("invented", self.now)
        assert (reply.verdict, reply.reason) == ("refused", "unknown_token")
        self.become(after)

    @rule(seconds=st.sampled_from([0.0, 0.5, 4.0, 9.99, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def tick(self) -> None:
        self.become(self.round.tick(self.now))
        assert self.round.tick(self.now) == self.round, "a tick at one instant leaves something to do"

    @precondition(lambda self: self.round.phase is Phase.COMMITTING)
    @rule(commit=st.booleans())
    def decide(self, commit: bool) -> None:
        current = self.round
        self.become(current.committed(self.now) if commit else current.abandoned("non_finite", self.now))

    @invariant()
    def no_more_than_the_goal_is_counted_and_each_token_once(self) -> None:
        assert len(self.round.reported) <= self.goal
        assert self.round.reported == set(self.counted)
        assert all(count == 1 for count in self.counted.values())

    @invariant()
    def cohort_is_at_most_goal_times_over_selection(self) -> None:
        assert len(self.round.cohort) <= -(-13 * self.goal // 10)
        assert len(set(self.round.cohort.values())) == len(self.round.cohort)

    @invariant()
    def a_commit_has_the_minimum_of_reports(self) -> None:
        if self.round.phase in (Phase.COMMITTING, Phase.COMMITTED):
            assert len(self.round.reported) >= self.minimum


Interleavings.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestInterleavings = Interleavings.TestCase
