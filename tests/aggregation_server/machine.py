"""`ServerMachine`: anything that devices, operators, time, disks and kills can do to a server, in any order.

The server is the real one on a real database and a real spool, but for its sockets. A kill is a copy of its files at
that instant, from which another server goes on. What is known here of the fleet is what devices sent and were answered;
after every step that must fit what the database, the spool and the history say.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import select

from aggregation_server.aggregation.robust import aggregate_round
from aggregation_server.aggregation.state import ServerState
from aggregation_server.coordination.requests import (
    Caller,
    CheckInRequest,
    ConfigurationRequest,
    DeniedError,
    ReportRequest,
    Request,
)
from aggregation_server.history import RoundRecord
from aggregation_server.rounds import RoundConfig
from aggregation_server.storage.database import StoreError
from aggregation_server.storage.ledger import REMEMBERED
from aggregation_server.storage.rows import CountedReport, Spooled
from aggregation_server.storage.schema import PARTICIPANTS
from aggregation_server.task import Task
from device_runtime.bundle import Bundle
from device_runtime.codec import read_update
from device_runtime.errors import InputError
from device_runtime.messages import CheckIn, CheckInReply, Configuration, Enrolment, ReportReply
from tests.aggregation_server.fleet import Fleet, evaluation, secret_of

NAMES = ("a", "b", "c", "d", "e")
KINDS = ("valid", "valid", "valid", "corrupt", "cut", "wrong_round", "not_finite", "noise", "of_another")
REFUSED = {
    *("truncated", "checksum", "format", "model", "shape", "wrong_round", "weight", "non_finite"),
    *("unknown_token", "duplicate", "not_started"),
}

CONFIGS = st.builds(
    RoundConfig,
    goal_count=st.just(2),
    over_selection=st.sampled_from([1.0, 1.5]),
    minimum_reports=st.integers(1, 2),
    selection_timeout=st.just(10.0),
    reporting_timeout=st.just(20.0),
    selection_seconds=st.sampled_from([0.0, 5.0]),  # with it, seats are lost to others
)
FAULTS = st.sampled_from([""] * 9 + ["transaction", "answer", "disk", "killed before", "killed after"])
VALUES = st.floats(-4, 4, width=32, allow_subnormal=False)
CHECK_INS = st.tuples(st.just("check-in"), st.sampled_from(NAMES))
CONFIGURATIONS = st.tuples(st.just("configuration"), st.integers(0, 7))
REPORTS = st.tuples(
    st.just("report"),
    st.integers(0, 4),
    st.sampled_from(KINDS),
    VALUES,
    st.integers(1, 9),
)
OPERATIONS = st.sampled_from(["pause", "resume", "resume", "resume", "roll back", "release", "revoke", "kill"])
BATCHES = st.lists(CHECK_INS | REPORTS | CONFIGURATIONS, min_size=1, max_size=5)


class KilledError(Exception):
    """The server's process ends here."""


@dataclass(frozen=True)
class Template:
    """A database with `NAMES` enrolled, and its spool, which every run begins with a copy of."""

    bundle: Bundle
    make_report: Callable[..., bytes]
    folder: Path


class ServerMachine(RuleBasedStateMachine):
    """One run.

    Args:
        template: what it begins with.
        folder: for its files; on a disk in memory, it takes a tenth of the time.
    """

    def __init__(self, template: Template, folder: Path) -> None:
        super().__init__()
        self._template = template
        self._place = folder
        self._life = 0
        self._now = [1000.0]
        self._revoked: set[str] = set()
        self._tokens: list[tuple[str, str]] = []  # of whom, and the token
        self._sent: dict[tuple[int, str], list[bytes]] = {}  # valid reports of a device in a round
        self._accepted: set[tuple[int, str]] = set()
        self._counted: dict[int, dict[str, bytes]] = {}  # of every round, as far as was seen
        self._over: dict[int, RoundRecord] = {}
        self._versions: dict[int, str] = {}
        self._task = Task(RoundConfig(1))
        self._fleet: Fleet

    # What happens.

    @initialize(config=CONFIGS, evaluate_every=st.sampled_from([None, 1, 2]))
    def begin(self, config: RoundConfig, evaluate_every: int | None) -> None:
        self._task = Task(config, evaluate_every=evaluate_every, retry_seconds=1.0)
        shutil.copytree(self._template.folder, self._folder)
        self._open()
        self._versions[0] = self._fleet.store.fleet().weights

    @rule(batch=BATCHES, fault=FAULTS)
    def ask(self, batch: list[tuple[Any, ...]], fault: str) -> None:
        self._ask(batch, fault)

    # One rule, since Hypothesis leaves out some rules from most runs: without any of these a round does not come far.
    @rule(what=st.sampled_from(["check-in", "report", "commit", "time", "all", "all"]), fault=FAULTS, data=st.data())
    def go_on(self, what: str, fault: str, data: st.DataObject) -> None:
        if what in ("check-in", "all"):
            self._ask([("check-in", name) for name in data.draw(st.permutations(NAMES))], fault)
        if what == "all":
            self._fleet.tick(11.0)
        if what in ("report", "all"):
            batch = data.draw(st.lists(REPORTS, min_size=1, max_size=6))
            if what == "all":
                batch += [("report", place, "valid", 1.0, 1 + place) for place in range(2)]
            self._ask(batch, fault)
            self._all_holds()
        if what == "all":
            self._fleet.tick(21.0)
        if what in ("commit", "all"):
            with (
                self._fault(fault),
                self._meanwhile(data.draw(st.booleans(), label="an operator rolls back meanwhile")),
            ):
                self._fleet.committer.commit()
            self._fleet.tick()
        if what == "time":
            self._fleet.tick(data.draw(st.sampled_from([0.1, 6.0, 11.0, 21.0]), label="seconds"))

    @rule(
        what=st.sampled_from(["pause", "resume", "resume", "resume", "roll back", "release", "revoke", "kill"]),
        data=st.data(),
    )
    def operate(self, what: str, data: st.DataObject) -> None:
        operations = self._fleet.operations
        if what == "pause":
            operations.pause()
        elif what == "resume":
            operations.resume()
        elif what == "roll back":
            self._roll_back(data.draw(st.integers(0, 4), label="version"))
        elif what == "release":
            self._release(data.draw(st.integers(0, 4), label="version"))
        elif what == "revoke":
            self._revoke_or_enrol_again(data.draw(st.sampled_from(NAMES), label="device"))
        else:
            with self._fault("killed before"):
                raise KilledError

    @rule()
    def settle(self) -> None:
        """Where nothing more is to be done, the spool holds the open round's reports, and no others'."""
        self._fleet.tick()
        found = self._fleet.store.open_round(self._task.round)
        folders = {path.name for path in self._fleet.spool.folder.glob("round-*")}
        assert folders <= (set() if found is None else {f"round-{found[0].id}"})

    # What always holds.

    @invariant()
    def all_holds(self) -> None:
        self._all_holds()

    def _all_holds(self) -> None:
        self._seats_are_the_cohort_s()
        self._what_counts_was_sent_and_what_was_accepted_counts()
        self._rounds_end_once_and_versions_follow_from_what_counts()
        self._counts_add_up()

    def _seats_are_the_cohort_s(self) -> None:
        found = self._fleet.store.open_round(self._task.round)
        if found is None:
            return
        query = select(PARTICIPANTS.c.seat).where(
            PARTICIPANTS.c.round_id == found[0].id, PARTICIPANTS.c.seat.is_not(None)
        )
        with self._fleet.store.database.reading() as connection:
            seats = sorted(connection.execute(query).scalars())
        assert seats == list(range(found[0].cohort))
        assert len(seats) <= self._task.round.cohort_size
        assert found[0].reported <= len(seats)

    def _what_counts_was_sent_and_what_was_accepted_counts(self) -> None:
        found = self._fleet.store.open_round(self._task.round)
        if found is not None:
            current = found[0]
            counted = {report.device: self._content(current.id, report) for report in self._reports(current.id)}
            for name, content in counted.items():
                assert content in self._sent[current.id, name]
            before = self._counted.get(current.id, {})
            assert before == {name: counted.get(name) for name in before}  # once counted, for good
            assert current.reported == len(counted) <= self._task.round.goal_count
            self._counted[current.id] = counted
        for round_id, name in self._accepted:
            assert name in self._counted[round_id]

    def _rounds_end_once_and_versions_follow_from_what_counts(self) -> None:
        history = self._fleet.history()
        assert {record.id: record for record in history} | self._over == {record.id: record for record in history}
        for record in history:
            if record.id not in self._over:
                self._ended(record)
                self._over[record.id] = record
        for record in history[-REMEMBERED:]:
            if record.task != "rollback" and record.id in self._counted:
                remembered = {report.device for report in self._reports(record.id)}
                assert remembered == set(self._counted[record.id])  # nothing counts any more
        fleet = self._fleet.store.fleet()
        assert sorted(self._versions) == list(range(fleet.number + 1))
        assert self._versions[fleet.number] == fleet.weights

    def _counts_add_up(self) -> None:
        found = self._fleet.store.open_round(self._task.round)
        total = self._fleet.store.fleet().counts
        if found is not None:
            total = total + found[1]
        assert total.reported == sum(map(len, self._counted.values()))
        assert total.checked_in == total.accepted + sum(total.rejected.values())
        assert set(total.refused) <= REFUSED

    # How it is done.

    def _ask(self, batch: list[tuple[Any, ...]], fault: str) -> None:
        requests = [request for one in batch if (request := self._request(*one)) is not None]
        with self._fault(fault):
            self._heard(requests, self._fleet.coordinator.handle(requests), bool(fault))

    def _roll_back(self, number: int) -> None:
        there = number < self._fleet.store.fleet().number
        try:
            record = self._fleet.operations.rollback(number)
        except InputError:
            assert not there
        else:
            assert there and record.weights == self._versions[number]

    def _release(self, number: int) -> None:
        there = number <= self._fleet.store.fleet().number
        try:
            assert self._fleet.operations.release(number) == self._versions[number]
        except InputError:
            assert not there

    def _revoke_or_enrol_again(self, name: str) -> None:
        if name in self._revoked:
            (code,) = self._fleet.enrolments.new_codes(1, 1, name)
            assert self._fleet.enrolments.enrol(Enrolment(code, name, secret_of(name))).verdict == "enrolled"
            self._revoked.discard(name)
        else:
            self._fleet.enrolments.revoke(name)
            self._revoked.add(name)

    @property
    def _folder(self) -> Path:
        return self._place / str(self._life)

    def _open(self) -> None:
        url = f"sqlite:///{self._folder / 'server.db'}"
        parts = (self._template.bundle, self._task, url, self._folder / "spool", self._now, self._template.make_report)
        self._fleet = Fleet(*parts, chance=self._life)

    def _request(self, what: str, *details: Any) -> Request | None:
        if what == "check-in":
            message = CheckIn("tiny", details[0], "test", ["training", "evaluation"])
            return CheckInRequest(Caller(details[0], secret_of(details[0])), message)
        if not self._tokens:
            return None
        name, token = self._tokens[-1 - details[0] % len(self._tokens)]  # the later ones more often
        caller = Caller(name, secret_of(name))
        if what == "configuration":
            return ConfigurationRequest(caller, token)
        kind, value, weight = details[1:]
        if kind == "of_another":
            thief = NAMES[NAMES.index(name) - 1]
            return ReportRequest(Caller(thief, secret_of(thief)), token, self._body(name, token, value, weight))
        body = self._body(name, token, value, weight, kind)
        ticket = self._fleet.coordinator.ticket(token, name)
        assert ticket is not None
        if kind == "valid":
            self._sent.setdefault((ticket.round_id, name), []).append(body)
        return ReportRequest(caller, token, body)

    def _body(self, name: str, token: str, value: float, weight: int, kind: str = "valid") -> bytes:
        ticket = self._fleet.coordinator.ticket(token, name)
        assert ticket is not None
        number = ticket.round_number + (kind == "wrong_round")
        if kind == "noise":
            return repr(value).encode() * weight
        loss = float("nan") if kind == "not_finite" else abs(value)
        if ticket.task == "evaluation":
            body = evaluation(number, count=10 * weight, correct=float(weight), loss_sum=loss)
        else:
            body = self._template.make_report(round_number=number, value=value, weight=weight, loss=loss)
        if kind == "cut":
            return body[: len(body) // 2]
        return bytes([body[0] ^ 255]) + body[1:] if kind == "corrupt" else body

    def _heard(self, requests: list[Request], answers: list[Any], may_fail: bool) -> None:
        assert len(answers) == len(requests)
        for request, answer in zip(requests, answers, strict=True):
            name = request.caller.name
            if isinstance(answer, StoreError):
                assert may_fail
            elif isinstance(answer, DeniedError):
                assert name in self._revoked
            elif isinstance(request, CheckInRequest):
                assert isinstance(answer, CheckInReply) and name not in self._revoked
                if answer.decision == "accept" and (name, answer.token) not in self._tokens:
                    self._tokens.append((name, answer.token))
            elif isinstance(request, ConfigurationRequest):
                assert isinstance(answer, Configuration) and name not in self._revoked
            else:
                assert isinstance(request, ReportRequest) and isinstance(answer, ReportReply)
                self._reported(request, answer)

    def _reported(self, request: ReportRequest, answer: ReportReply) -> None:
        name = request.caller.name
        ticket = self._fleet.coordinator.ticket(request.token, name)
        if ticket is None:
            assert (answer.verdict, answer.reason) == ("refused", "unknown_token")
            return
        valid = request.body in self._sent.get((ticket.round_id, name), ())
        if answer.verdict == "accepted":
            assert valid
            assert (ticket.round_id, name) not in self._accepted
            self._accepted.add((ticket.round_id, name))
        elif answer.verdict == "refused":
            assert answer.reason in REFUSED
            assert not valid or answer.reason in ("duplicate", "not_started", "unknown_token")

    def _ended(self, record: RoundRecord) -> None:
        if record.task == "rollback":
            self._made(record)
            return
        counted = dict(sorted(self._counted.get(record.id, {}).items()))
        assert record.counts.reported == len(counted)
        if record.outcome == "abandoned":
            assert record.weights == self._versions[max(self._versions)]
            return
        assert record.clients == len(counted) >= self._task.round.minimum_reports
        if record.task == "evaluation":
            said = [json.loads(body) for body in counted.values()]
            assert record.examples == sum(one["count"] for one in said)
            assert record.accuracy == sum(one["correct"] for one in said) / record.examples
            return
        bundle = self._template.bundle
        manifest = bundle.manifest
        reports = [CountedReport(name, Spooled("", 0, 0), None) for name in counted]

        def read(report: CountedReport) -> Any:
            return read_update(counted[report.device], manifest.tensors, manifest.model_id)

        key = (self._task.seed, record.number)
        mean, tally = aggregate_round(reports, read, manifest.tensors, self._task.aggregation, key)
        data = self._fleet.store.weights(self._versions[record.number - 1])
        assert data is not None
        after = ServerState.load(record.number - 1, data, manifest.tensors).after(mean, manifest.tensors)
        assert (record.weights, record.examples) == (after.identity, tally.examples)
        self._made(record)

    def _made(self, record: RoundRecord) -> None:
        assert record.number == max(self._versions) + 1
        self._versions[record.number] = record.weights

    def _reports(self, round_id: int) -> list[CountedReport]:
        return self._fleet.store.reports(round_id)

    def _content(self, round_id: int, report: CountedReport) -> bytes:
        if report.spooled is not None:
            return self._fleet.spool.read(round_id, report.spooled)
        assert report.evaluation is not None
        said = report.evaluation
        return evaluation(said["round_number"], said["count"], said["correct"], said["loss_sum"])

    @contextmanager
    def _fault(self, fault: str) -> Iterator[None]:
        """Something that goes wrong once in a context, at the first transaction or write in it."""
        database = self._fleet.store.database
        transaction = database.transaction
        broken = False

        @contextmanager
        def faulty() -> Iterator[Any]:
            nonlocal broken
            once, broken = not broken, True
            with transaction() as connection:
                yield connection
                if once and fault == "transaction":
                    raise StoreError("the transaction fails")
                if once and fault == "killed before":
                    self._copy()
                    raise KilledError
            if once and fault == "killed after":
                self._copy()
                raise KilledError
            if once and fault == "answer":
                raise StoreError("nobody hears that it was committed")

        def full(file: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        try:
            if not fault:
                yield
            elif fault == "disk":
                with patch("os.fdatasync", full):
                    yield
            else:
                with patch.object(database, "transaction", faulty):
                    yield
        except (StoreError, KilledError):
            pass
        if fault.startswith("killed"):
            if not self._next.exists():  # it came to nothing before
                self._copy()
            self._fleet.close()
            self._life += 1
            self._open()

    @contextmanager
    def _meanwhile(self, rolls_back: bool) -> Iterator[None]:
        """An operator goes back to the first version between the sum of the reports and its commit."""
        committer = self._fleet.committer
        write = committer._write

        def late(*decided: Any) -> bool:
            self._roll_back(0)
            self._fleet.tick()  # and the next round begins
            return write(*decided)

        with patch.object(committer, "_write", late if rolls_back else write):
            yield

    @property
    def _next(self) -> Path:
        return self._place / str(self._life + 1)

    def _copy(self) -> None:
        shutil.copytree(self._folder, self._next)

    def teardown(self) -> None:
        if hasattr(self, "_fleet"):
            self._fleet.close()
        shutil.rmtree(self._place, ignore_errors=True)
