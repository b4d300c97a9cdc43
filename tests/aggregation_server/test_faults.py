"""A database or a disk that fails: said for each request, nothing changed, and all goes on as soon as it can."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, event

from aggregation_server.coordination.committer import Committer
from aggregation_server.coordination.desk import BusyError, Desk
from aggregation_server.coordination.requests import Admission, CheckInRequest, DeniedError, ReportRequest, Request
from aggregation_server.storage.database import StoreError
from aggregation_server.storage.spool import SpoolError
from device_runtime.messages import CheckIn, CheckInReply, ReportReply
from tests.aggregation_server.fleet import Fleet, caller

Make = Callable[..., Fleet]
MakeReport = Callable[..., bytes]


@contextmanager
def failing(words: str) -> Iterator[list[str]]:
    """Every statement that begins with these words fails; those that did."""
    failed: list[str] = []

    def fail(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if statement.startswith(words):
            failed.append(statement)
            raise sqlite3.OperationalError("disk I/O error")

    event.listen(Engine, "before_cursor_execute", fail)
    try:
        yield failed
    finally:
        event.remove(Engine, "before_cursor_execute", fail)


@contextmanager
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No byte of a report can be brought to the disk."""

    def fail(_file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("aggregation_server.storage.spool.os.fdatasync", fail)
        yield


def spooled(fleet: Fleet) -> int:
    """Bytes of all reports on the disk."""
    return sum(path.stat().st_size for path in fleet.spool.folder.rglob("*.reports"))


@pytest.mark.parametrize("words", ["UPDATE participants", "UPDATE rounds", "UPDATE fleet"])
def test_a_database_that_fails_changes_nothing_and_says_so_to_each(
    make_fleet: Make, make_report: MakeReport, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = make_fleet()
    fleet.join("a", "b", "c")
    before = fleet.status()
    requests: list[Request] = [
        ReportRequest(caller("a"), fleet.tokens["a"], make_report()),
        CheckInRequest(caller("d"), CheckIn("tiny", "d", "test")),
        ReportRequest(caller("b"), fleet.tokens["b"], make_report(weight=0)),
        Admission(caller("a")),
        Admission(caller("nobody")),
    ]
    with failing(words) as failed:
        answers = fleet.coordinator.handle(requests)
    assert failed
    message = f"{fleet.store.database.name}: the server's database failed: disk I/O error"
    assert [str(answer) for answer in answers[:3]] == [message] * 3
    assert all(isinstance(answer, StoreError) for answer in answers[:3])
    assert answers[3] is True and isinstance(answers[4], DeniedError), "downloads go on"
    assert caplog.messages == [f"3 requests are refused: {message}"]
    assert fleet.status() == before
    assert not fleet.coordinator.due(), "nobody asks again at once"
    fleet.now[0] += 1
    answers = fleet.coordinator.handle(requests)
    assert answers[0] == ReportReply("accepted")
    assert isinstance(answers[1], CheckInReply) and answers[1].reason == "cohort_full"
    assert isinstance(answers[2], ReportReply) and answers[2].reason == "weight"
    assert spooled(fleet) == len(make_report()), "what did not count was given back"
    fleet.report("b")
    assert fleet.commit()
    assert fleet.history()[0].clients == 2


def test_a_disk_that_is_full_is_said_to_who_reports_and_to_nobody_else(
    make_fleet: Make, make_report: MakeReport, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = make_fleet()
    fleet.join("a", "b", "c")
    fleet.report("a")
    requests: list[Request] = [
        CheckInRequest(caller("d"), CheckIn("tiny", "d", "test")),
        ReportRequest(caller("b"), fleet.tokens["b"], make_report()),
        Admission(caller("a")),
    ]
    with full(monkeypatch):
        check_in, report, admitted = fleet.coordinator.handle(requests)
    message = f"{fleet.spool.folder}: can't write reports: No space left on device"
    assert isinstance(check_in, CheckInReply) and check_in.reason == "cohort_full"
    assert isinstance(report, SpoolError) and str(report) == message
    assert admitted is True
    assert caplog.messages == [f"reports are refused: {message}"]
    assert (fleet.status()["reports"], spooled(fleet)) == (1, len(make_report()))
    assert fleet.status()["counts"]["checked_in"] == 4
    assert fleet.report("b").verdict == "accepted"
    assert fleet.commit()
    assert fleet.history()[0].clients == 2


def test_what_was_counted_without_a_turn_is_not_lost_with_a_turn(make_fleet: Make) -> None:
    fleet = make_fleet()
    fleet.coordinator.downloaded(5)
    fleet.join("a")
    fleet.coordinator.downloaded(7)
    with failing("UPDATE rounds"):
        assert fleet.coordinator.handle(()) == []
    fleet.tick(1)
    assert fleet.status()["counts"]["download_bytes"] == 12


def test_a_commit_that_the_database_refuses_is_tried_again(make_fleet: Make) -> None:
    fleet = make_fleet(over_selection=1)
    fleet.join("a", "b")
    fleet.report("a")
    fleet.report("b")
    before = fleet.status()
    for words in ("INSERT INTO weights", "UPDATE rounds", "UPDATE fleet"):
        with failing(words), pytest.raises(StoreError, match=r"the server's database failed: disk I/O error$"):
            fleet.committer.commit()
        assert fleet.status() == before
        assert fleet.coordinator.state.round_number == 0
    assert fleet.commit()
    assert (fleet.status()["committed_rounds"], fleet.coordinator.state.round_number) == (1, 1)


def test_a_report_that_is_damaged_on_the_disk_ends_its_round(
    make_fleet: Make, make_report: MakeReport, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = make_fleet(over_selection=1)
    fleet.join("a", "b")
    fleet.report("a")
    fleet.report("b")
    (segment,) = fleet.spool.folder.rglob("*.reports")
    data = bytearray(segment.read_bytes())
    data[len(make_report()) - 10] ^= 1
    segment.write_bytes(data)
    assert fleet.commit()
    record = fleet.history()[0]
    assert (record.outcome, record.reason) == ("abandoned", "damaged_report")
    assert caplog.messages[0].startswith("round 1: a report is damaged on the disk: ")
    assert spooled(fleet) == 0
    fleet.run_round("a", "b")


# The desk: the event loop's side.


def at_the_desk(fleet: Fleet, work: Callable[[Desk], object]) -> None:
    """Run `work` in an event loop whose requests the fleet's desk takes."""
    desk = Desk(fleet.coordinator, Committer(fleet.coordinator))

    async def run() -> None:
        desk.start()
        try:
            await work(desk)  # type: ignore[misc]
        finally:
            await asyncio.to_thread(desk.stop)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_requests_that_come_at_once_are_answered_each(make_fleet: Make) -> None:
    fleet = make_fleet(goal_count=3, over_selection=2)
    fleet.enrol(*"abcdef")

    async def work(desk: Desk) -> None:
        asked = [desk.ask(CheckInRequest(caller(name), CheckIn("tiny", name, "test"))) for name in "abcdef"]
        replies = await asyncio.gather(*asked, desk.run(lambda: "between"), desk.ask(Admission(caller("a"))))
        assert [reply.decision for reply in replies[:6]] == ["accept"] * 6
        assert replies[6:] == ["between", True]
        with pytest.raises(DeniedError):
            await desk.ask(Admission(caller("nobody")))
        with pytest.raises(ZeroDivisionError):
            await desk.run(lambda: 1 // 0)
        assert desk.length == 0

    at_the_desk(fleet, work)


def test_a_desk_commits_rounds_and_opens_the_next_one(make_fleet: Make, make_report: MakeReport) -> None:
    fleet = make_fleet(goal_count=1, over_selection=1, rounds=3)
    fleet.enrol("a")

    async def work(desk: Desk) -> None:
        for number in (1, 2, 3):
            reply = await desk.ask(CheckInRequest(caller("a"), CheckIn("tiny", "a", "test")))
            while reply.decision != "accept":
                await asyncio.sleep(0.01)
                reply = await desk.ask(CheckInRequest(caller("a"), CheckIn("tiny", "a", "test")))
            body = make_report(round_number=number)
            assert (await desk.ask(ReportRequest(caller("a"), reply.token, body))).verdict == "accepted"
        while not fleet.coordinator.complete:
            await asyncio.sleep(0.01)

    at_the_desk(fleet, work)
    assert [record.number for record in fleet.history()] == [1, 2, 3]


def test_a_desk_goes_on_after_a_turn_and_a_commit_that_failed(
    make_fleet: Make, make_report: MakeReport, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = make_fleet(goal_count=1, over_selection=1)
    fleet.join("a")
    handle, outcome, errors = (
        fleet.coordinator.handle,
        Committer._outcome,
        iter((StoreError("locked"), KeyError("bug"))),
    )

    def broken(requests: object) -> object:
        monkeypatch.setattr(fleet.coordinator, "handle", handle)
        raise KeyError("a fault of the program")

    def failed(self: Committer, *arguments: object) -> object:
        error = next(errors, None)
        if error is not None:
            raise error
        return outcome(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fleet.coordinator, "handle", broken)
    monkeypatch.setattr(Committer, "_outcome", failed)
    monkeypatch.setattr("aggregation_server.coordination.desk._AGAIN_SECONDS", 0.05)

    async def work(desk: Desk) -> None:
        with pytest.raises(KeyError, match="a fault of the program"):
            await desk.ask(CheckInRequest(caller("a"), CheckIn("tiny", "a", "test")))
        reply = await desk.ask(ReportRequest(caller("a"), fleet.tokens["a"], make_report()))
        assert reply == ReportReply("accepted")
        while fleet.store.fleet().number == 0:
            await asyncio.sleep(0.01)

    with caplog.at_level(logging.ERROR):
        at_the_desk(fleet, work)
    assert caplog.messages == ["a turn failed", "a round is not committed yet: locked", "a commit failed"]
    assert "KeyError: 'a fault of the program'" in caplog.text


def test_a_queue_that_is_too_long_and_a_desk_that_ends_take_nobody(
    make_fleet: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make_fleet()
    fleet.enrol("a")
    monkeypatch.setattr("aggregation_server.coordination.desk._LONGEST_QUEUE", 2)
    began, release, message = threading.Event(), threading.Event(), "^too many requests wait already$"
    desks = []

    def hold() -> bool:
        began.set()
        return release.wait(20)

    async def work(desk: Desk) -> None:
        desks.append(desk)
        held = asyncio.ensure_future(desk.run(hold))
        try:
            assert await asyncio.to_thread(began.wait, 20)
            gone, waiting = (asyncio.ensure_future(desk.ask(Admission(caller("a")))) for _ in range(2))
            while desk.length < 2:
                await asyncio.sleep(0)
            with pytest.raises(BusyError, match=message):
                await desk.ask(Admission(caller("a")))
            gone.cancel()
        finally:
            release.set()
        assert await held and await waiting
        assert await desk.ask(Admission(caller("a"))), "a caller that has gone does no harm"

    at_the_desk(fleet, work)

    async def late() -> None:
        with pytest.raises(BusyError, match=message):
            await desks[0].ask(Admission(caller("a")))

    asyncio.run(late())
