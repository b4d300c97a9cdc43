"""The coordinator: rounds from check-in to commit, with a clock and tokens that the test holds."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from aggregation_server.coordinator import Coordinator
from aggregation_server.history import RoundRecord
from aggregation_server.store import Store, StoreError
from device_runtime.bundle import FILES, MANIFEST, MANIFEST_HASH, MANIFEST_SIGNATURE, Bundle
from device_runtime.messages import CheckIn, CheckInReply
from device_runtime.weights import load_weights
from device_runtime.work import ClientWork, client_seed

Make = Callable[..., Coordinator]
MakeReport = Callable[..., bytes]


def join(coordinator: Coordinator, *clients: str) -> list[CheckInReply]:
    return [coordinator.check_in(CheckIn("tiny", client, "test")) for client in clients]


def run_round(coordinator: Coordinator, make_report: MakeReport, number: int, value: float = 1.0) -> list[str]:
    """A whole round with the goal of two; its tokens."""
    tokens = [reply.token for reply in join(coordinator, "a", "b", "c")]
    for token in tokens[:2]:
        assert coordinator.report(token, make_report(value=value, round_number=number)).verdict == "accepted"
    return tokens


def test_a_round_commits_w_plus_the_weighted_mean_delta(
    make_coordinator: Make, make_report: MakeReport, bundle: Bundle, now: list[float]
) -> None:
    coordinator = make_coordinator()
    replies = join(coordinator, "a", "b", "c")
    assert [(reply.decision, reply.round_number, reply.token) for reply in replies] == [
        ("accept", 1, "t0"),
        ("accept", 1, "t1"),
        ("accept", 1, "t2"),
    ]
    before = coordinator.status()
    now[0] += 7
    assert coordinator.report("t0", make_report(value=1.0, weight=1, loss=1.0)).verdict == "accepted"
    assert coordinator.report("t2", make_report(value=3.0, weight=3, loss=3.0)).verdict == "accepted"
    status = coordinator.status()
    assert (status["committed_rounds"], status["round"], status["phase"]) == (1, 2, "selection")
    assert status["weights"] != before["weights"] == status["initial_weights"]
    data = coordinator.weights(status["weights"])
    assert data is not None
    for tensor, initial in zip(load_weights(data, bundle.manifest.tensors), bundle.initial_weights(), strict=True):
        np.testing.assert_array_equal(tensor, initial + np.float32(2.5))
    (record,) = status["history"]
    assert (record["number"], record["outcome"], record["weights"]) == (1, "committed", status["weights"])
    assert (record["clients"], record["examples"], record["loss"], record["seconds"]) == (2, 4, 2.5, 7.0)


def test_configuration_waits_for_the_cohort_and_then_gives_the_work(
    make_coordinator: Make, bundle: Bundle, now: list[float]
) -> None:
    work = ClientWork(epochs=3, batch_size=4, learning_rate=0.5, proximal=0.25, codec="q8", seed=99)
    coordinator = make_coordinator(work=work, seed=5, reporting_timeout=60)
    join(coordinator, "a", "b")
    waiting = coordinator.configuration("t0")
    assert waiting.state == "wait"
    assert 0.16 <= waiting.retry_after_seconds <= 0.24
    join(coordinator, "c")
    now[0] += 15
    configuration = coordinator.configuration("t1")
    assert (configuration.state, configuration.round_number) == ("start", 1)
    assert configuration.bundle == bundle.identity
    assert configuration.weights == coordinator.status()["weights"]
    assert ClientWork.from_json(configuration.work) == ClientWork(
        epochs=3, batch_size=4, learning_rate=0.5, proximal=0.25, codec="q8", seed=client_seed(5, 1, "b"),
        deadline_seconds=45.0,
    )  # fmt: skip


@pytest.mark.parametrize("known", [True, False])
def test_configuration_is_aborted_for_a_round_that_is_over_and_for_a_token_of_another_life(
    make_coordinator: Make, make_report: MakeReport, known: bool
) -> None:
    coordinator = make_coordinator()
    run_round(coordinator, make_report, 1)
    assert coordinator.configuration("t2" if known else "x").state == "aborted"


def test_check_in_rejects_with_a_reason_and_counts_it(make_coordinator: Make) -> None:
    coordinator = make_coordinator(retry_seconds=10.0)
    join(coordinator, "a", "b")
    rejected = [
        *join(coordinator, "a", "c", "d"),
        coordinator.check_in(CheckIn("other", "e", "test")),
        *join(coordinator, "", "f" * 65, "a b", "a\n"),
    ]
    assert (rejected[0].decision, rejected[0].token) == ("accept", "t0")  # a device that asks again
    reasons = [reply.reason for reply in rejected if reply.decision == "reject"]
    assert reasons == ["cohort_full", "population", "client", "client", "client", "client"]
    windows = [reply.retry_after_seconds for reply in rejected if reply.decision == "reject"]
    assert all(8 <= seconds <= 12 for seconds in windows)
    assert len(set(windows)) == len(windows)
    counts = coordinator.status()["counts"]
    assert (counts["checked_in"], counts["accepted"]) == (10, 4)
    assert counts["rejected"] == {"client": 4, "cohort_full": 1, "population": 1}


def test_the_population_is_the_models_name_unless_the_task_names_one(make_coordinator: Make) -> None:
    coordinator = make_coordinator(population="phones")
    assert coordinator.check_in(CheckIn("tiny", "a", "test")).reason == "population"
    assert coordinator.check_in(CheckIn("phones", "a", "test")).decision == "accept"


def test_a_refused_report_is_counted_by_reason_and_changes_nothing_else(
    make_coordinator: Make, make_report: MakeReport
) -> None:
    coordinator = make_coordinator()
    join(coordinator, "a", "b", "c")
    good = make_report()
    bodies = {
        "truncated": b"",
        "checksum": good[:-1] + bytes([good[-1] ^ 1]),
        "non_finite": _sealed(good[:-8] + struct.pack("<f", np.nan)),
        "weight": make_report(weight=0),
        "wrong_round": make_report(round_number=2),
    }
    for reason, body in bodies.items():
        reply = coordinator.report("t0", body)
        assert (reply.verdict, reply.reason) == ("refused", reason)
        assert reply.message
    assert coordinator.report("x", good).reason == "unknown_token"
    assert coordinator.status()["reports"] == 0
    assert coordinator.report("t0", good).verdict == "accepted", "a refused report used up the token"
    duplicate = coordinator.report("t0", good)
    assert (duplicate.verdict, duplicate.reason) == ("refused", "duplicate")
    counts = coordinator.status()["counts"]
    assert counts["refused"] == dict.fromkeys(sorted([*bodies, "unknown_token", "duplicate"]), 1)
    assert counts["reported"] == 1
    assert counts["upload_bytes"] == sum(map(len, bodies.values())) + 3 * len(good)


def test_the_refused_and_the_late_leave_no_trace_in_the_weights(
    make_coordinator: Make, make_report: MakeReport, open_store: Callable[..., Store]
) -> None:
    clean = make_coordinator(store=open_store("sqlite://"))
    run_round(clean, make_report, 1)
    coordinator = make_coordinator()
    join(coordinator, "a", "b", "c")
    coordinator.report("t0", make_report(value=1000.0, weight=0))
    coordinator.report("t0", make_report(value=1.0))
    coordinator.report("t0", make_report(value=1000.0))
    coordinator.report("t1", make_report(value=1.0))
    coordinator.report("t2", make_report(value=1000.0))
    status = coordinator.status()
    assert status["weights"] == clean.status()["weights"] != status["initial_weights"]
    assert (status["history"][0]["clients"], status["history"][0]["examples"]) == (2, 2)
    assert status["counts"]["late"] == 1


def test_a_late_report_is_aborted_even_after_further_rounds(make_coordinator: Make, make_report: MakeReport) -> None:
    coordinator = make_coordinator()
    straggler = run_round(coordinator, make_report, 1)[2]
    for number in (1, 2):
        before = coordinator.status()["weights"]
        reply = coordinator.report(straggler, make_report())
        assert (reply.verdict, reply.reason) == ("aborted", "late")
        assert coordinator.status()["weights"] == before
        run_round(coordinator, make_report, number + 1)
    assert coordinator.status()["counts"]["late"] == 2


def test_an_abandoned_round_is_tried_again_under_its_number(
    make_coordinator: Make, make_report: MakeReport, now: list[float]
) -> None:
    coordinator = make_coordinator(minimum_reports=2, reporting_timeout=30)
    before = coordinator.status()["weights"]
    join(coordinator, "a", "b", "c")
    assert coordinator.report("t0", make_report(value=9.0)).verdict == "accepted"
    now[0] += 30
    coordinator.tick()
    status = coordinator.status()
    assert (status["phase"], status["round"], status["weights"]) == ("selection", 1, before)
    (record,) = status["history"]
    assert (record["outcome"], record["reason"], record["clients"]) == ("abandoned", "reporting_timeout", 1)
    assert coordinator.configuration("t1").state == "aborted"
    reply = coordinator.report("t1", make_report())
    assert (reply.verdict, reply.reason) == ("aborted", "abandoned")
    tokens = [reply.token for reply in join(coordinator, "a", "b", "c")]
    for token in tokens[:2]:
        coordinator.report(token, make_report(value=1.0))
    data = coordinator.weights(coordinator.status()["weights"])
    assert data is not None
    kernel = load_weights(data, coordinator.bundle.manifest.tensors)[0]
    np.testing.assert_array_equal(kernel, coordinator.bundle.initial_weights()[0] + 1, "the lost report was counted")


def test_an_idle_server_remembers_nothing(make_coordinator: Make, now: list[float]) -> None:
    coordinator = make_coordinator(selection_timeout=10)
    for _ in range(5):
        now[0] += 10
        coordinator.tick()
    assert coordinator.status()["history"] == []
    assert join(coordinator, "a")[0].decision == "accept"


def test_after_its_rounds_the_task_is_complete(
    make_coordinator: Make, make_report: MakeReport, now: list[float]
) -> None:
    coordinator = make_coordinator(rounds=2)
    run_round(coordinator, make_report, 1)
    assert not coordinator.status()["complete"]
    tokens = run_round(coordinator, make_report, 2)
    for _ in range(2):
        status = coordinator.status()
        assert (status["complete"], status["phase"], status["round"]) == (True, "complete", 2)
        assert join(coordinator, "a")[0] == CheckInReply("complete")
        assert coordinator.configuration(tokens[2]).state == "aborted"
        now[0] += 1000
        coordinator.tick()
    assert coordinator.report(tokens[2], make_report(round_number=2)).reason == "late"
    again = make_coordinator(rounds=2)
    assert join(again, "a")[0].decision == "complete"


def test_a_restart_goes_on_from_the_last_commit(
    make_coordinator: Make, make_report: MakeReport, caplog: pytest.LogCaptureFixture
) -> None:
    first = make_coordinator()
    run_round(first, make_report, 1)
    join(first, "d", "e", "f")
    before = first.status()
    with caplog.at_level(logging.INFO, "aggregation_server"):
        again = make_coordinator(prefix="a")
        make_coordinator(rounds=1)
    assert caplog.messages == ["going on after round 1", "going on after round 1; complete"]
    status = again.status()
    for key in ("weights", "initial_weights", "round", "committed_rounds", "history"):
        assert status[key] == before[key]
    assert status["counts"]["reported"] == 2
    assert again.configuration("t3").state == "aborted"
    reply = again.report("t3", make_report(round_number=2))
    assert (reply.verdict, reply.reason) == ("refused", "unknown_token")
    run_round(again, make_report, 2)
    assert again.status()["committed_rounds"] == 2


def test_a_commit_that_the_database_refuses_is_tried_again(
    make_coordinator: Make,
    make_report: MakeReport,
    open_store: Callable[..., Store],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    now: list[float],
) -> None:
    store = open_store()
    coordinator = make_coordinator(store=store)
    before = coordinator.status()["weights"]

    def fail(_record: RoundRecord, _data: bytes) -> None:
        now[0] += 5  # as a lock that is waited for
        raise StoreError("server.db: the server's database failed: disk full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "commit", fail)
        tokens = run_round(coordinator, make_report, 1)
        status = coordinator.status()
    assert (status["phase"], status["weights"], status["committed_rounds"]) == ("committing", before, 0)
    assert coordinator.configuration(tokens[2]).state == "aborted"
    assert coordinator.report(tokens[2], make_report()).reason == "late"
    assert caplog.messages == ["round 1 is not committed yet: server.db: the server's database failed: disk full"], (
        "one attempt a second, however many requests come"
    )
    now[0] += 1
    coordinator.tick()
    assert coordinator.status()["committed_rounds"] == store.latest()[0] == 1


def test_a_commit_whose_acknowledgement_was_lost_counts_once(
    make_coordinator: Make,
    make_report: MakeReport,
    open_store: Callable[..., Store],
    monkeypatch: pytest.MonkeyPatch,
    now: list[float],
) -> None:
    store = open_store()
    coordinator = make_coordinator(store=store)
    commit = store.commit

    def lose(record: RoundRecord, data: bytes) -> None:
        commit(record, data)
        raise StoreError("server closed the connection unexpectedly")

    with monkeypatch.context() as patch:
        patch.setattr(store, "commit", lose)
        run_round(coordinator, make_report, 1)
    now[0] += 1
    coordinator.tick()
    status = coordinator.status()
    assert (status["committed_rounds"], status["phase"], len(status["history"])) == (1, "selection", 1)
    assert status["counts"]["reported"] == 2
    run_round(coordinator, make_report, 2)
    assert [record.number for record in store.history()] == [0, 1, 2]


def test_a_round_that_another_server_committed_is_dropped_and_its_weights_are_gone_on_from(
    make_coordinator: Make,
    make_report: MakeReport,
    open_store: Callable[..., Store],
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = make_coordinator(), make_coordinator(prefix="s", store=open_store())
    run_round(first, make_report, 1, 1.0)
    run_round(second, make_report, 1, 2.0)
    assert caplog.messages == [
        "round 1 was committed by another server; this one's reports are dropped",
        "round 1 abandoned: superseded",
    ]
    status = second.status()
    assert (status["weights"], status["round"]) == (first.status()["weights"], 2)
    assert [(record["outcome"], record["reason"]) for record in status["history"]] == [
        ("committed", ""),
        ("abandoned", "superseded"),
    ]
    run_round(second, make_report, 2)
    assert second.status()["committed_rounds"] == 2


def test_an_abandonment_that_the_database_refuses_does_not_stop_the_server(
    make_coordinator: Make,
    open_store: Callable[..., Store],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    now: list[float],
) -> None:
    store = open_store()
    coordinator = make_coordinator(store=store, minimum_reports=2, selection_timeout=10)

    def fail(_record: RoundRecord) -> None:
        raise StoreError("disk full")

    monkeypatch.setattr(store, "abandon", fail)
    join(coordinator, "a")
    now[0] += 10
    assert join(coordinator, "b")[0].decision == "accept"
    assert caplog.messages == [
        "round 1 abandoned: selection_timeout",
        "round 1: its abandonment is not remembered: disk full",
    ]


def test_a_round_whose_weights_would_overflow_is_abandoned(
    make_coordinator: Make, make_report: MakeReport, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator = make_coordinator()
    largest = float(np.finfo(np.float32).max)
    run_round(coordinator, make_report, 1, largest)
    before = coordinator.status()["weights"]
    run_round(coordinator, make_report, 2, largest)
    status = coordinator.status()
    assert (status["committed_rounds"], status["weights"]) == (1, before)
    assert (status["history"][1]["outcome"], status["history"][1]["reason"]) == ("abandoned", "non_finite")
    assert "round 2: new weights: tensor 'kernel' holds values that are not finite" in caplog.messages


def test_downloads_are_known_files_only_and_counted(make_coordinator: Make, bundle: Bundle) -> None:
    coordinator = make_coordinator()
    for name in (*FILES, MANIFEST, MANIFEST_HASH):
        path = coordinator.bundle_file(bundle.identity, name)
        assert path == bundle.file(name)
    assert coordinator.weights(coordinator.status()["weights"]) is not None
    assert coordinator.bundle_file(bundle.identity, "../secret") is None
    assert coordinator.bundle_file(bundle.identity, MANIFEST_SIGNATURE) is None  # this bundle is not signed
    assert coordinator.bundle_file("0" * 64, MANIFEST) is None
    assert coordinator.weights("0" * 64) is None
    coordinator.downloaded(7)
    coordinator.downloaded(4)
    assert coordinator.status()["counts"]["download_bytes"] == 11


def test_commits_are_logged(make_coordinator: Make, make_report: MakeReport, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "aggregation_server"):
        run_round(make_coordinator(), make_report, 1)
    assert caplog.messages == ["round 1 committed: 2 reports, loss 0.5"]


def _sealed(content: bytes) -> bytes:
    return content + struct.pack("<I", zlib.crc32(content))
