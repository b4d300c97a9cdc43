"""The coordinator and the committer: rounds from check-in to commit, with a clock that the test moves."""

from __future__ import annotations

import logging
import sqlite3
import struct
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aggregation_server.access.tokens import Ticket, token_for
from aggregation_server.coordination.requests import (
    Admission,
    Caller,
    CheckInRequest,
    ConfigurationRequest,
    DeniedError,
)
from aggregation_server.rounds import Phase
from aggregation_server.storage.database import StoreError
from aggregation_server.storage.ledger import REMEMBERED
from device_runtime.bundle import Bundle
from device_runtime.messages import CheckIn, CheckInReply, ReportReply
from device_runtime.weights import load_weights
from device_runtime.work import ClientWork, client_seed
from tests.aggregation_server.fleet import Fleet, caller

Make = Callable[..., Fleet]
MakeReport = Callable[..., bytes]
UNKNOWN = ReportReply("refused", "unknown_token", "no round of this server gave out this token")


def kernel(fleet: Fleet, identity: str | None = None) -> npt.NDArray[np.float32]:
    """The first tensor of a version, by default of the latest."""
    data = fleet.coordinator.weights(identity or fleet.status()["weights"])
    assert data is not None
    return load_weights(data, fleet.coordinator.bundle.manifest.tensors)[0]


def test_a_round_commits_w_plus_the_weighted_mean_delta(make_fleet: Make, bundle: Bundle) -> None:
    fleet = make_fleet()
    assert [(reply.decision, reply.round_number) for reply in fleet.check_in("a", "b", "c")] == [("accept", 1)] * 3
    before = fleet.status()
    assert before["weights"] == before["initial_weights"]
    fleet.tick(7)
    assert fleet.report("a", value=1.0, weight=1, loss=1.0) == ReportReply("accepted")
    assert not fleet.coordinator.committing
    assert not fleet.committer.commit()
    assert fleet.report("c", value=3.0, weight=3, loss=3.0) == ReportReply("accepted")
    assert fleet.coordinator.committing
    assert fleet.status()["phase"] == "committing"
    assert fleet.committer.commit()
    assert fleet.status()["phase"] == "selection", "of the round to come"
    fleet.tick()
    assert not fleet.committer.commit()
    status = fleet.status()
    assert (status["committed_rounds"], status["round"], status["phase"]) == (1, 2, "selection")
    data = fleet.coordinator.weights(status["weights"])
    assert data is not None and data == fleet.coordinator.state.data
    for tensor, initial in zip(load_weights(data, bundle.manifest.tensors), bundle.initial_weights(), strict=True):
        np.testing.assert_array_equal(tensor, initial + np.float32(2.5))
    (record,) = fleet.history()
    assert (record.number, record.outcome, record.weights, record.task) == (
        1,
        "committed",
        status["weights"],
        "training",
    )
    assert (record.clients, record.cohort, record.examples, record.loss, record.seconds) == (2, 3, 4, 2.5, 7.0)
    assert record.ended - record.started == pytest.approx(7.0)


def test_the_weights_do_not_depend_on_the_order_of_the_reports(make_fleet: Make, tmp_path: Path) -> None:
    """Sums of floats do; so the committer adds them in the order of the devices' names."""
    values, identities = {"a": 1e8, "b": -1e8, "c": 0.3, "d": 1.7, "e": -3e7}, set()
    for order in ("abcde", "edcba", "cbead"):
        url, spool = f"sqlite:///{tmp_path}/{order}.db", tmp_path / order
        fleet = make_fleet(store_url=url, spool=spool, goal_count=5, over_selection=1)
        fleet.join(*sorted(values))
        for name in order:
            assert fleet.report(name, value=values[name], weight=3).verdict == "accepted"
        assert fleet.commit()
        identities.add(fleet.status()["weights"])
        fleet.close()
    assert len(identities) == 1


def test_configuration_waits_for_the_cohort_and_then_gives_the_work(make_fleet: Make, bundle: Bundle) -> None:
    work = ClientWork(epochs=3, batch_size=4, learning_rate=0.5, proximal=0.25, codec="q8", seed=99)
    fleet = make_fleet(work=work, seed=5, reporting_timeout=60, poll_seconds=2.0)
    (reply, _) = fleet.check_in("a", "b")
    assert 1.6 <= reply.retry_after_seconds <= 2.4
    waiting = fleet.configuration("a")
    assert waiting.state == "wait"
    assert 1.6 <= waiting.retry_after_seconds <= 2.4
    fleet.join("c")
    fleet.now[0] += 15
    configuration = fleet.configuration("b")
    assert (configuration.state, configuration.round_number, configuration.task) == ("start", 1, "training")
    assert configuration.bundle == bundle.identity
    assert configuration.weights == fleet.status()["weights"]
    assert ClientWork.from_json(configuration.work) == ClientWork(
        epochs=3, batch_size=4, learning_rate=0.5, proximal=0.25, codec="q8", seed=client_seed(5, 1, "b"),
        deadline_seconds=45.0,
    )  # fmt: skip


def test_configuration_is_aborted_when_its_round_is_over_or_was_never_its_device_s(make_fleet: Make) -> None:
    fleet = make_fleet()
    fleet.join("a", "b", "c")
    fleet.report("a")
    fleet.report("b")
    assert fleet.configuration("c").state == "aborted", "it has its reports"
    fleet.commit()
    assert fleet.configuration("c").state == "aborted", "it is over"
    fleet.join("a", "b", "c")
    fleet.enrol("d")
    assert fleet.configuration("d", token=fleet.tokens["a"]).state == "aborted", "another device's token"
    assert fleet.configuration("d", token="nonsense").state == "aborted"
    ticket = fleet.coordinator.ticket(fleet.tokens["a"], "a")
    assert ticket is not None
    invented = token_for(ticket, "d", fleet.coordinator.token_key)
    assert fleet.configuration("d", token=invented).state == "aborted", "it has not checked in"


def test_check_in_rejects_with_a_reason_and_counts_it(make_fleet: Make) -> None:
    fleet = make_fleet(retry_seconds=10.0)
    fleet.join("a", "b")
    first = fleet.tokens["a"]
    again, third, fourth = fleet.check_in("a", "c", "d")
    assert (again.decision, again.token) == ("accept", first), "a device that asks again has its token again"
    others = [
        fleet.ask(CheckInRequest(caller("d"), CheckIn(population, client, "test")), CheckInReply)
        for population, client in (("other", "d"), ("tiny", "e"), ("tiny", ""))
    ]
    rejected = [fourth, *others]
    assert [reply.reason for reply in rejected] == ["cohort_full", "population", "client", "client"]
    assert {(reply.decision, reply.token) for reply in rejected} == {("reject", "")}
    assert {reply.retry_after_seconds for reply in rejected} == {10.0}, "devices vary it themselves"
    fleet.report("a")
    assert fleet.check_in("a")[0].reason == "already_reported"
    counts = fleet.status()["counts"]
    assert (counts["checked_in"], counts["accepted"]) == (9, 4)
    assert counts["rejected"] == {"already_reported": 1, "client": 2, "cohort_full": 1, "population": 1}
    assert third.decision == "accept"


def test_a_round_that_has_started_below_its_cohort_rejects(make_fleet: Make) -> None:
    fleet = make_fleet(selection_timeout=10)
    fleet.join("a")
    fleet.now[0] += 10
    assert fleet.check_in("b")[0].reason == "round_started"


def test_the_population_is_the_models_name_unless_the_task_names_one(make_fleet: Make) -> None:
    fleet = make_fleet(population="phones")
    fleet.enrol("a")
    replies = [
        fleet.ask(CheckInRequest(caller("a"), CheckIn(population, "a", "test")), CheckInReply)
        for population in ("tiny", "phones")
    ]
    assert [(reply.decision, reply.reason) for reply in replies] == [("reject", "population"), ("accept", "")]


def test_a_stranger_a_wrong_secret_and_a_revoked_device_are_denied_everything(make_fleet: Make) -> None:
    fleet = make_fleet()
    fleet.join("a", "b", "c")
    fleet.enrolments.revoke("b")
    token = fleet.tokens["b"]
    for wrong in (Caller("nobody", "x" * 40), Caller("a", "x" * 40), Caller("a", ""), caller("b"), Caller("", "")):
        message = CheckIn("tiny", wrong.name, "test")
        answers = fleet.coordinator.handle(
            [CheckInRequest(wrong, message), ConfigurationRequest(wrong, token), Admission(wrong)]
        )
        assert [type(answer) for answer in answers] == [DeniedError] * 3
        with pytest.raises(DeniedError):
            fleet.ask(Admission(wrong), bool)
    with pytest.raises(DeniedError):
        fleet.report("b")
    assert fleet.ask(Admission(caller("a")), bool)
    counts = fleet.status()["counts"]
    assert (counts["checked_in"], counts["reported"], counts["rejected"]) == (3, 0, {})


def test_a_revoked_device_s_report_that_counted_still_counts(make_fleet: Make) -> None:
    fleet = make_fleet(goal_count=2, over_selection=1)
    fleet.join("a", "b")
    fleet.report("a", value=1.0)
    fleet.enrolments.revoke("a")
    fleet.report("b", value=3.0)
    assert fleet.commit()
    assert fleet.history()[0].clients == 2


def test_a_refused_report_is_counted_by_reason_and_changes_nothing_else(
    make_fleet: Make, make_report: MakeReport
) -> None:
    fleet = make_fleet()
    fleet.join("a", "b", "c")
    good = make_report()
    bodies = {
        "truncated": b"",
        "checksum": good[:-1] + bytes([good[-1] ^ 1]),
        "non_finite": _sealed(good[:-8] + struct.pack("<f", np.nan)),
        "weight": make_report(weight=0),
        "wrong_round": make_report(round_number=2),
    }
    for reason, body in bodies.items():
        reply = fleet.report("a", body)
        assert (reply.verdict, reply.reason) == ("refused", reason)
        assert reply.message
    assert fleet.report("a", good, token="x") == UNKNOWN
    assert fleet.status()["reports"] == 0
    assert fleet.report("a", good).verdict == "accepted", "a refused report used up the token"
    for body in (good, b"", make_report(value=7.0)):
        duplicate = ReportReply("refused", "duplicate", "this token's report was already counted")
        assert fleet.report("a", body) == duplicate
    counts = fleet.status()["counts"]
    assert counts["refused"] == dict.fromkeys(bodies, 1) | {"duplicate": 3, "unknown_token": 1}
    assert counts["reported"] == 1
    assert counts["upload_bytes"] == sum(map(len, bodies.values())) + 4 * len(good)


def test_a_token_is_its_device_s_alone(make_fleet: Make, make_report: MakeReport) -> None:
    fleet = make_fleet()
    fleet.join("a", "b", "c")
    assert len(set(fleet.tokens.values())) == 3
    assert fleet.report("b", make_report(), token=fleet.tokens["a"]) == UNKNOWN
    assert fleet.configuration("b", token=fleet.tokens["a"]).state == "aborted"
    assert fleet.status()["reports"] == 0
    assert fleet.report("a").verdict == "accepted"


def test_a_report_before_the_start_is_refused(make_fleet: Make) -> None:
    fleet = make_fleet()
    fleet.join("a")
    message = "round 1 has not started: ask for the configuration first"
    assert fleet.report("a") == ReportReply("refused", "not_started", message)


def test_the_refused_and_the_late_leave_no_trace_in_the_weights(make_fleet: Make) -> None:
    fleet = make_fleet()
    before = kernel(fleet)
    fleet.join("a", "b", "c")
    fleet.report("a", value=1000.0, weight=0)
    fleet.report("a", value=1.0)
    fleet.report("a", value=1000.0)
    fleet.report("b", value=1.0)
    fleet.report("c", value=1000.0)
    assert fleet.commit()
    np.testing.assert_array_equal(kernel(fleet), before + 1)
    (record,) = fleet.history()
    assert (record.clients, record.examples, record.counts.late) == (2, 2, 1)
    assert record.counts.refused == {"duplicate": 1, "weight": 1}


def test_a_late_report_is_known_for_as_many_rounds_as_are_remembered(make_fleet: Make) -> None:
    fleet = make_fleet(goal_count=1, over_selection=2)
    fleet.join("a", "z")
    fleet.report("a")
    first, duplicate = fleet.tokens["z"], fleet.tokens["a"]
    late = ReportReply("aborted", "late", "round 1 already has all its reports")
    assert fleet.report("z") == late, "it waits for its commit"
    fleet.commit()
    for number in range(2, REMEMBERED + 1):
        assert fleet.report("z", token=first) == late
        assert fleet.report("a", token=duplicate).reason == "duplicate"
        fleet.join("a", "b")
        fleet.report("a")
        assert fleet.commit(), number
    assert fleet.report("z", token=first) == late
    fleet.join("a", "b")
    fleet.report("a")
    fleet.commit()
    assert fleet.report("z", token=first) == UNKNOWN
    assert fleet.report("a", token=duplicate) == UNKNOWN
    assert fleet.status()["counts"]["late"] == REMEMBERED + 1


def test_a_token_of_a_round_that_never_was(make_fleet: Make, make_report: MakeReport) -> None:
    fleet = make_fleet()
    fleet.enrol("a")
    invented = token_for(Ticket(77, 1, "training"), "a", fleet.coordinator.token_key)
    assert fleet.report("a", make_report(), token=invented) == UNKNOWN


def test_an_abandoned_round_is_tried_again_under_its_number(make_fleet: Make, caplog: pytest.LogCaptureFixture) -> None:
    fleet = make_fleet(minimum_reports=2, reporting_timeout=30)
    before = fleet.status()["weights"]
    fleet.join("a", "b", "c")
    assert fleet.report("a", value=9.0).verdict == "accepted"
    fleet.tick(30)
    assert caplog.messages == ["round 1 (training) abandoned: reporting_timeout"]
    status = fleet.status()
    assert (status["phase"], status["round"], status["weights"]) == ("selection", 1, before)
    (record,) = fleet.history()
    assert (record.outcome, record.reason, record.number, record.seconds) == ("abandoned", "reporting_timeout", 1, 30)
    assert (record.cohort, record.counts.reported, record.weights) == (3, 1, before)
    assert fleet.configuration("b").state == "aborted"
    assert fleet.report("b") == ReportReply("aborted", "abandoned", "round 1 was abandoned: reporting_timeout")
    old = dict(fleet.tokens)
    start = kernel(fleet)
    fleet.join("a", "b", "c")
    assert all(fleet.tokens[name] != old[name] for name in "abc"), "another attempt has other tokens"
    fleet.report("a", value=1.0)
    fleet.report("b", value=1.0)
    assert fleet.commit()
    np.testing.assert_array_equal(kernel(fleet), start + 1, "the lost report was counted")
    assert [record.outcome for record in fleet.history()] == ["abandoned", "committed"]


def test_a_deadline_with_the_minimum_of_reports_commits(make_fleet: Make) -> None:
    fleet = make_fleet(goal_count=3, minimum_reports=2, reporting_timeout=30)
    fleet.join("a", "b", "c", "d")
    fleet.report("a")
    fleet.report("c")
    fleet.now[0] += 30
    assert fleet.report("d").reason == "late"
    assert fleet.commit()
    assert fleet.history()[0].clients == 2


def test_a_selection_without_enough_devices_is_abandoned(make_fleet: Make) -> None:
    fleet = make_fleet(minimum_reports=2, selection_timeout=10)
    fleet.join("a")
    fleet.tick(10)
    (record,) = fleet.history()
    assert (record.outcome, record.reason, record.cohort) == ("abandoned", "selection_timeout", 1)
    assert fleet.report("a") == ReportReply("aborted", "abandoned", "round 1 was abandoned: selection_timeout")


def test_an_idle_server_remembers_nothing(make_fleet: Make) -> None:
    fleet = make_fleet(selection_timeout=10)
    for _ in range(5):
        fleet.tick(10)
    assert fleet.history() == []
    assert fleet.check_in("a")[0].decision == "accept"
    fleet.tick(9)
    assert fleet.configuration("a").state == "wait", "the selection began with its last try"


def test_after_its_rounds_the_task_is_complete(make_fleet: Make) -> None:
    fleet = make_fleet(rounds=2)
    fleet.run_round("a", "b")
    assert not fleet.status()["complete"]
    fleet.join("a", "b", "c")
    fleet.report("a")
    fleet.report("b")
    fleet.commit()
    for _ in range(2):
        status = fleet.status()
        assert (status["complete"], status["phase"], status["round"]) == (True, "complete", 2)
        assert fleet.check_in("a") == [CheckInReply("complete")]
        assert fleet.configuration("c").state == "aborted"
        assert fleet.report("c").reason == "late"
        fleet.tick(1000)
    counts = fleet.status()["counts"]
    assert (counts["checked_in"], counts["late"]) == (2 + 3 + 2, 2), "what is asked after the end is counted too"
    fleet.close()
    again = make_fleet(rounds=2)
    assert again.check_in("a")[0].decision == "complete"
    again.close()
    assert make_fleet(rounds=3).check_in("a")[0].decision == "accept"


def test_a_restart_goes_on_in_the_middle_of_a_round(make_fleet: Make, caplog: pytest.LogCaptureFixture) -> None:
    first = make_fleet(over_selection=2, reporting_timeout=100)
    first.run_round("a", "b")
    first.join("c", "d", "e")
    waiting = first.status()
    first.close()
    second = make_fleet(over_selection=2, reporting_timeout=100)
    assert second.status() == waiting
    tokens = dict(first.tokens)
    assert second.check_in("c")[0].token == tokens["c"]
    second.join("f")
    assert second.configuration("d", token=tokens["d"]).state == "start"
    second.tick(60)
    assert second.report("d", token=tokens["d"], value=2.0).verdict == "accepted"
    second.close()
    second.now[0] += 1000  # nobody serves: the deadline waits
    with caplog.at_level(logging.INFO, "aggregation_server"):
        third = make_fleet(over_selection=2, reporting_timeout=100)
    assert caplog.messages == ["going on after version 1"]
    assert third.status()["reports"] == 1
    assert third.configuration("e", token=tokens["e"]).work is not None
    assert third.report("d", token=tokens["d"]).reason == "duplicate"
    third.tick(39)
    assert third.report("e", token=tokens["e"], value=4.0).verdict == "accepted"
    start = kernel(third)
    third.close()  # all reports are there, and no commit yet
    fourth = make_fleet(over_selection=2, reporting_timeout=100)
    assert fourth.coordinator.committing
    assert fourth.commit()
    np.testing.assert_array_equal(kernel(fourth), start + 3)
    assert [record.number for record in fourth.history()] == [1, 2]


@pytest.mark.parametrize(
    ("damage", "message"),
    [("DELETE FROM weights", "not there"), ("UPDATE weights SET data = x'00'", "damaged in the database")],
)
def test_a_server_whose_weights_are_gone_or_damaged_does_not_start(make_fleet: Make, damage: str, message: str) -> None:
    fleet = make_fleet()
    identity, name = fleet.status()["weights"], fleet.store.database.name
    fleet.close()
    with closing(sqlite3.connect(name)) as database:  # which does not look after keys between tables
        database.execute(damage)
        database.commit()
    with pytest.raises(StoreError) as caught:
        make_fleet()
    assert str(caught.value) == f"{name}: the weights {identity[:16]}… are {message}"


def test_commits_are_logged(make_fleet: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "aggregation_server"):
        make_fleet(selection_timeout=1).run_round("a", "b")
    assert caplog.messages == ["round 1 committed: 2 reports, loss 0.5"]


def test_a_round_that_moves_no_weight_commits(make_fleet: Make) -> None:
    fleet = make_fleet(over_selection=1)
    fleet.run_round("a", "b", value=0.0)
    fleet.run_round("a", "b", value=0.0)
    status = fleet.status()
    assert (status["committed_rounds"], status["weights"]) == (2, status["initial_weights"])


def test_a_round_whose_weights_would_overflow_is_abandoned(make_fleet: Make, caplog: pytest.LogCaptureFixture) -> None:
    fleet = make_fleet(over_selection=1)
    largest = float(np.finfo(np.float32).max)
    fleet.run_round("a", "b", value=largest)
    before = fleet.status()["weights"]
    fleet.run_round("a", "b", value=largest)
    status = fleet.status()
    assert (status["committed_rounds"], status["weights"], status["round"]) == (1, before, 2)
    record = fleet.history()[1]
    assert (record.outcome, record.reason, record.number) == ("abandoned", "non_finite", 2)
    assert "round 2: new weights: tensor 'kernel' holds values that are not finite" in caplog.messages
    fleet.run_round("a", "b", value=-1.0)
    assert fleet.status()["committed_rounds"] == 2


def test_a_device_rests_between_two_of_its_rounds(make_fleet: Make) -> None:
    fleet = make_fleet(goal_count=1, over_selection=2, participation_seconds=100, retry_seconds=5)
    fleet.join("a", "b")
    fleet.report("a")
    assert fleet.check_in("a")[0].reason == "already_reported"
    fleet.commit()
    (reply,) = fleet.check_in("a")
    assert (reply.decision, reply.reason) == ("reject", "too_soon")
    assert reply.retry_after_seconds == 100.0
    fleet.join("b")  # its report did not count
    fleet.tick(97)
    (reply,) = fleet.check_in("a")
    assert (reply.reason, reply.retry_after_seconds) == ("too_soon", 5.0)
    fleet.tick(3)
    assert fleet.check_in("a")[0].reason == "round_started"


def test_a_device_that_has_a_seat_keeps_it_whatever_its_rest(make_fleet: Make) -> None:
    fleet = make_fleet(goal_count=1, over_selection=2, participation_seconds=100)
    fleet.join("a", "b")
    fleet.report("a")
    fleet.commit()
    fleet.join("b")
    assert fleet.check_in("b")[0].decision == "accept"


def test_bytes_that_are_served_and_reports_that_are_not_looked_at_are_counted(make_fleet: Make) -> None:
    fleet = make_fleet()
    coordinator = fleet.coordinator
    assert not coordinator.due()
    coordinator.downloaded(7)
    coordinator.downloaded(4)
    assert coordinator.refuse("too_large", "too much") == ReportReply("refused", "too_large", "too much")
    assert coordinator.due()
    fleet.tick()
    assert not coordinator.due()
    counts = fleet.status()["counts"]
    assert (counts["download_bytes"], counts["refused"]) == (11, {"too_large": 1})


def test_a_turn_is_due_when_a_phase_ends(make_fleet: Make) -> None:
    fleet = make_fleet(selection_timeout=10, reporting_timeout=50)
    fleet.join("a")
    fleet.tick()
    assert not fleet.coordinator.due()
    fleet.tick(9.5)
    fleet.now[0] += 0.4
    assert not fleet.coordinator.due()
    fleet.now[0] += 0.1
    assert fleet.coordinator.due()
    fleet.tick()
    found = fleet.store.open_round(fleet.coordinator.task.round)
    assert found is not None and found[0].phase is Phase.REPORTING
    fleet.coordinator.hurry()
    assert fleet.coordinator.due()


def test_the_clock_in_the_database_goes_on_and_never_back(make_fleet: Make) -> None:
    fleet = make_fleet()
    assert fleet.store.fleet().clock == 0.0
    fleet.tick(5)
    assert fleet.store.fleet().clock == 5.0
    fleet.close()
    fleet.now[0] = 3.0  # another machine, whose clock began elsewhere
    again = make_fleet()
    again.tick(2)
    assert again.store.fleet().clock == 7.0


def _sealed(content: bytes) -> bytes:
    return content + struct.pack("<I", zlib.crc32(content))
