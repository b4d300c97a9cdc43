"""Batches: what is answered does not depend on how requests are cut into turns, and a seat has one device at a time."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, select

from aggregation_server.access.tokens import Ticket, token_for
from aggregation_server.coordination.requests import (
    Admission,
    Caller,
    CheckInRequest,
    ConfigurationRequest,
    DeniedError,
    ReportRequest,
    Request,
)
from aggregation_server.storage.schema import DEVICES, FLEET, PARTICIPANTS, ROUNDS, WEIGHTS
from device_runtime.messages import CheckIn, CheckInReply, ReportReply
from tests.aggregation_server.fleet import Fleet, caller

Make = Callable[..., Fleet]
NAMES = "abcdef"


@dataclass(frozen=True)
class Move:
    """What a device asks for; requests with a token come with the last one that `name` was given."""

    kind: str
    name: str
    other: str
    value: float


MOVES = st.builds(
    Move,
    st.sampled_from(
        ["check-in", "check-in", "configuration", "report", "report", "damaged", "stolen", "ask", "stranger"]
    ),
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
    st.sampled_from([-1.5, 0.25, 3.0]),
)
BATCHES = st.lists(st.tuples(st.lists(MOVES, max_size=8), st.sampled_from([0.0, 6.0, 30.0])), max_size=4)


@dataclass
class Side:
    """A fleet that is asked in turns of one size; remembers the tokens that its devices were given."""

    fleet: Fleet
    size: int
    tokens: dict[str, str] = field(default_factory=dict)

    def asked(self, moves: list[Move], make_report: Callable[..., bytes]) -> list[Any]:
        # Tokens are those of the batches before: what is asked is the same however it is cut.
        requests = [self._request(move, make_report) for move in moves]
        answers = [
            answer
            for start in range(0, len(requests), self.size)
            for answer in self.fleet.coordinator.handle(requests[start : start + self.size])
        ]
        for move, answer in zip(moves, answers, strict=True):
            if isinstance(answer, CheckInReply) and answer.token:
                self.tokens[move.name] = answer.token
        return [repr(answer) if isinstance(answer, DeniedError) else answer for answer in answers]

    def _request(self, move: Move, make_report: Callable[..., bytes]) -> Request:
        device, token = caller(move.name), self.tokens.get(move.name, "none")
        if move.kind == "check-in":
            return CheckInRequest(device, CheckIn("tiny", move.name, "test"))
        if move.kind == "configuration":
            return ConfigurationRequest(device, token)
        if move.kind == "ask":
            return Admission(device)
        if move.kind == "stranger":
            return Admission(Caller(move.name, "x" * 40))
        if move.kind == "stolen":
            token = self.tokens.get(move.other, "none")
        body = make_report(value=move.value, round_number=self._number(move.name))
        return ReportRequest(device, token, body[:-1] if move.kind == "damaged" else body)

    def _number(self, name: str) -> int:
        ticket = self.fleet.coordinator.ticket(self.tokens.get(name, ""), name)
        return 1 if ticket is None else ticket.round_number

    def state(self) -> list[list[tuple[Any, ...]]]:
        """All that the database holds but wall-clock times, keys, and where reports are in their segment."""
        queries = (
            select(FLEET.c.clock, FLEET.c.number, FLEET.c.weights, FLEET.c.counts),
            select(*ROUNDS.c.values()[:11], ROUNDS.c.weights, ROUNDS.c.loss, ROUNDS.c.clients).order_by(ROUNDS.c.id),
            select(
                PARTICIPANTS.c.round_id, PARTICIPANTS.c.device, PARTICIPANTS.c.seat, PARTICIPANTS.c.reported
            ).order_by(PARTICIPANTS.c.round_id, PARTICIPANTS.c.device),
            select(DEVICES.c.name, DEVICES.c.participated, DEVICES.c.reports).order_by(DEVICES.c.name),
            select(WEIGHTS.c.sha256).order_by(WEIGHTS.c.sha256),
        )
        with self.fleet.store.database.reading() as connection:
            return [[tuple(row) for row in connection.execute(query)] for query in queries]


def test_answers_are_the_same_whether_requests_come_in_one_batch_or_one_by_one(
    make_fleet: Make, make_report: Callable[..., bytes], tmp_path: Path
) -> None:
    places = (tmp_path / f"{number}" for number in itertools.count())

    @settings(max_examples=15, deadline=None)
    @given(batches=BATCHES, seconds=st.sampled_from([0.0, 5.0]), rest=st.sampled_from([0.0, 8.0]))
    def check(batches: list[tuple[list[Move], float]], seconds: float, rest: float) -> None:
        fields = {"selection_seconds": seconds, "participation_seconds": rest, "minimum_reports": 2}
        fields |= {"selection_timeout": 10, "reporting_timeout": 20}
        sides = []
        for size in (1, 1000):
            place = next(places)
            place.mkdir()
            fleet = make_fleet(store_url=f"sqlite:///{place / 'server.db'}", spool=place / "spool", **fields)
            sides.append(Side(fleet, size))
        one_by_one, together = sides
        try:
            start = together.fleet.now[0]
            for moves, wait in batches:
                assert together.asked(moves, make_report) == one_by_one.asked(moves, make_report)
                assert together.state() == one_by_one.state()
                assert together.fleet.commit() == one_by_one.fleet.commit()
                together.fleet.now[0] += wait
            for side in sides:
                side.fleet.tick()
            assert together.state() == one_by_one.state()
            together.fleet.now[0] = start
        finally:
            for side in sides:
                side.fleet.close()
        for place in tmp_path.iterdir():
            shutil.rmtree(place)

    check()


def displaced(fleet: Fleet) -> str:
    """A device that lost its seat to another one; devices check in until there is one."""
    fleet.join("a", "b")
    for index in range(100):
        fleet.check_in(f"n{index}")
        for name in "ab":
            if fleet.configuration(name).state == "aborted":
                return name
    raise AssertionError("nobody was displaced")


def test_a_device_whose_seat_another_one_has_is_told_so(make_fleet: Make) -> None:
    fleet = make_fleet(over_selection=1, selection_seconds=30)
    name = displaced(fleet)
    (reply,) = fleet.check_in(name)
    assert (reply.decision, reply.reason) == ("reject", "not_selected"), "asking again gives no second chance"
    fleet.tick(30)
    assert fleet.report(name) == ReportReply("aborted", "not_selected", "round 1 goes on with other devices")
    assert fleet.check_in(name)[0].reason == "cohort_full"
    started = [device for device in fleet.tokens if fleet.configuration(device).state == "start"]
    assert len(started) == 2 and name not in started
    for device in started:
        assert fleet.report(device).verdict == "accepted"
    assert fleet.commit()
    record = fleet.history()[0]
    assert (record.cohort, record.clients, record.counts.late) == (2, 2, 1)


def test_a_batch_may_displace_a_device_that_it_has_just_accepted(make_fleet: Make) -> None:
    """Whatever a seed draws, in one turn: each seat has one device, and that is the last that was told so."""
    lost = 0
    for chance in range(4):
        fleet = make_fleet(goal_count=1, over_selection=1, selection_seconds=30, chance=chance)
        replies = fleet.check_in(*NAMES)
        accepted = [name for name, reply in zip(NAMES, replies, strict=True) if reply.decision == "accept"]
        fleet.tick(30)
        states = {name: fleet.configuration(name).state for name in accepted}
        assert states == dict.fromkeys(accepted[:-1], "aborted") | {accepted[-1]: "start"}
        lost += len(accepted) - 1
        fleet.close()
        Path(fleet.store.database.name).unlink()
    assert lost, "no seed displaced anybody"


def test_one_turn_may_hold_all_that_a_device_does_in_a_round(
    make_fleet: Make, make_report: Callable[..., bytes]
) -> None:
    fleet = make_fleet(goal_count=1, over_selection=1)
    device, check_in = caller("a"), CheckInRequest(caller("a"), CheckIn("tiny", "a", "test"))
    token = token_for(Ticket(1, 1, "training"), "a", fleet.coordinator.token_key)
    report = ReportRequest(device, token, make_report())
    answers = fleet.coordinator.handle(
        [report, check_in, check_in, ConfigurationRequest(device, token), report, report, check_in, Admission(device)]
    )
    said = [(type(answer).__name__, *map(vars(answer).get, ("decision", "state", "reason"))) for answer in answers[:-1]]
    assert said == [
        ("ReportReply", None, None, "unknown_token"),
        ("CheckInReply", "accept", None, ""),
        ("CheckInReply", "accept", None, ""),
        ("Configuration", None, "start", None),
        ("ReportReply", None, None, ""),
        ("ReportReply", None, None, "duplicate"),
        ("CheckInReply", "reject", None, "already_reported"),
    ]
    assert answers[-1] is True
    assert fleet.commit()
    assert fleet.history()[0].clients == 1


def test_an_empty_batch_is_answered_with_nothing(make_fleet: Make) -> None:
    assert make_fleet().coordinator.handle(()) == []


def test_what_devices_say_of_their_runtime_is_kept_short_and_printable(make_fleet: Make) -> None:
    fleet = make_fleet()
    said = "tflite\0 2.14\n" + "x" * 100
    fleet.ask(CheckInRequest(caller("a"), CheckIn("tiny", "a", said)), CheckInReply)
    record = next(device for device in fleet.enrolments.devices() if device.name == "a")
    assert record.runtime == ("tflite 2.14" + "x" * 100)[:62]
    assert record.seen is not None and record.state == "active"


def test_a_turn_asks_few_questions_whatever_its_length(make_fleet: Make) -> None:
    fleet = make_fleet(goal_count=50, over_selection=1)
    names = [f"n{index}" for index in range(40)]
    fleet.enrol(*names)
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        counts = []
        for batch in (names[:1], names[1:10], names[10:]):
            statements.clear()
            fleet.check_in(*batch)
            counts.append(len(statements))
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert counts[0] == counts[1] == counts[2] < 15
