"""What operators do: pause, resume, roll back, release; and which versions are kept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sqlalchemy import insert

from aggregation_server.aggregation.server_optimizer import ServerOptimizer
from aggregation_server.storage.schema import OPTIMIZERS
from device_runtime.errors import InputError
from device_runtime.messages import CheckInReply, ReportReply
from device_runtime.weights import load_weights
from tests.aggregation_server.fleet import Fleet

Make = Callable[..., Fleet]


def rounds(fleet: Fleet, count: int) -> list[str]:
    """So many committed rounds; the identities of all versions."""
    for number in range(count):
        fleet.run_round("a", "b", value=1.0 + number)
    return [fleet.status()["initial_weights"], *(record.weights for record in fleet.history())]


def there(fleet: Fleet, versions: list[str]) -> list[int]:
    """The numbers of those that can be had."""
    return [number for number, identity in enumerate(versions) if fleet.coordinator.weights(identity) is not None]


def only(replies: list[CheckInReply]) -> tuple[str, str]:
    (reply,) = replies
    return reply.decision, reply.reason


def test_a_pause_ends_a_selection_and_a_resume_begins_one(make_fleet: Make) -> None:
    fleet = make_fleet()
    fleet.join("a")
    fleet.operations.pause()
    status = fleet.status()
    assert (status["phase"], status["paused"]) == ("paused", True)
    (record,) = fleet.history()
    assert (record.outcome, record.reason, record.cohort) == ("abandoned", "paused", 1)
    assert fleet.configuration("a").state == "aborted"
    assert fleet.report("a") == ReportReply("aborted", "abandoned", "round 1 was abandoned: paused")
    assert only(fleet.check_in("b")) == ("reject", "paused")
    fleet.operations.pause()
    fleet.tick(1000)
    assert len(fleet.history()) == 1
    counts = fleet.status()["counts"]
    assert (counts["checked_in"], counts["late"], counts["rejected"]) == (2, 1, {"paused": 1})
    fleet.operations.resume()
    assert fleet.coordinator.due()
    assert only(fleet.check_in("b")) == ("accept", "")
    assert not fleet.status()["paused"]


def test_a_pause_of_a_selection_that_nobody_is_in_leaves_nothing(make_fleet: Make) -> None:
    fleet = make_fleet()
    fleet.operations.pause()
    assert fleet.history() == []
    assert fleet.store.open_round(fleet.coordinator.task.round) is None
    fleet.operations.resume()
    fleet.run_round("a", "b")


def test_a_pause_lets_a_round_that_has_started_end(make_fleet: Make) -> None:
    fleet = make_fleet()
    fleet.join("a", "b", "c")
    fleet.operations.pause()
    assert fleet.configuration("a").state == "start"
    assert fleet.report("a").verdict == "accepted"
    assert fleet.report("b").verdict == "accepted"
    assert fleet.commit()
    assert fleet.status()["committed_rounds"] == 1
    assert only(fleet.check_in("a")) == ("reject", "paused")


def test_a_pause_outlives_the_server(make_fleet: Make) -> None:
    fleet = make_fleet()
    fleet.operations.pause()
    fleet.close()
    assert only(make_fleet().check_in("a")) == ("reject", "paused")


def test_a_rollback_makes_a_version_of_its_own_with_earlier_weights(make_fleet: Make) -> None:
    fleet = make_fleet(over_selection=1)
    versions = rounds(fleet, 3)
    record = fleet.operations.rollback(1)
    assert (record.number, record.task, record.reason, record.weights) == (4, "rollback", "to 1", versions[1])
    assert fleet.history()[-1] == record
    fleet.tick()
    status = fleet.status()
    assert (status["committed_rounds"], status["weights"], status["round"]) == (4, versions[1], 5)
    fleet.join("a", "b")
    assert fleet.configuration("a").weights == versions[1]
    fleet.report("a", value=1.0)
    fleet.report("b", value=1.0)
    assert fleet.commit()
    before, after = (fleet.coordinator.weights(identity) for identity in (versions[1], fleet.status()["weights"]))
    assert before is not None and after is not None
    specs = fleet.coordinator.bundle.manifest.tensors
    np.testing.assert_array_equal(load_weights(after, specs)[0], load_weights(before, specs)[0] + 1)
    assert [record.number for record in fleet.history()] == [1, 2, 3, 4, 5]
    fleet.close()
    assert make_fleet(over_selection=1).status()["committed_rounds"] == 5


@pytest.mark.parametrize("phase", ["selection", "reporting", "committing"])
def test_a_rollback_ends_the_round_that_is_open(make_fleet: Make, phase: str) -> None:
    fleet = make_fleet()
    fleet.run_round("a", "b")
    fleet.join(*{"selection": "ab", "reporting": "abc", "committing": "abc"}[phase])
    if phase != "selection":
        fleet.report("a")
    if phase == "committing":
        fleet.report("b")
    assert fleet.status()["phase"] == phase
    fleet.operations.rollback(0)
    ended, rollback = fleet.history()[1:]
    assert (ended.number, ended.outcome, ended.reason, ended.task) == (2, "abandoned", "rollback", "training")
    assert (rollback.number, rollback.outcome, rollback.reason) == (2, "committed", "to 0")
    assert fleet.report("b" if phase == "reporting" else "a").verdict != "accepted"
    assert not fleet.commit()
    assert fleet.status()["weights"] == fleet.status()["initial_weights"]
    fleet.run_round("a", "b")
    assert fleet.status()["committed_rounds"] == 3


def test_a_rollback_while_a_commit_computes_wins(make_fleet: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = make_fleet(over_selection=1)
    fleet.run_round("a", "b")
    fleet.join("a", "b")
    fleet.report("a")
    fleet.report("b")
    following = fleet.coordinator.downlink.next

    def rolled_back(*arguments: object, **options: object) -> object:
        fleet.operations.rollback(0)
        return following(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(fleet.coordinator.downlink, "next", rolled_back)
    assert not fleet.commit()
    assert [(record.outcome, record.reason) for record in fleet.history()[1:]] == [
        ("abandoned", "rollback"),
        ("committed", "to 0"),
    ]


def test_a_rollback_brings_back_the_optimiser_s_state(make_fleet: Make) -> None:
    fleet = make_fleet(over_selection=1, optimizer=ServerOptimizer("momentum"))
    rounds(fleet, 2)
    first, second = fleet.store.optimizer(1), fleet.store.optimizer(2)
    assert first is not None and second is not None and first != second
    fleet.operations.rollback(1)
    assert fleet.store.optimizer(3) == first
    fleet.operations.rollback(0)
    assert fleet.store.optimizer(4) is None


def test_a_rollback_to_what_another_optimiser_made_is_refused_and_rounds_go_on(make_fleet: Make) -> None:
    fleet = make_fleet(over_selection=1, optimizer=ServerOptimizer("momentum"))
    rounds(fleet, 1)
    fleet.operations.rollback(0)
    fleet.close()
    fleet = make_fleet(over_selection=1, optimizer=ServerOptimizer("fedadam"))
    fleet.run_round("a", "b")
    with pytest.raises(InputError) as caught:
        fleet.operations.rollback(1)
    assert str(caught.value) == (
        "version 1: made with another --server-optimizer than fedadam; start the server with that one first"
    )
    fleet.run_round("a", "b")
    fleet.operations.rollback(0)
    fleet.run_round("a", "b")


@pytest.mark.parametrize("number", [-1, 2, 3, 99])
def test_a_rollback_needs_an_earlier_version(make_fleet: Make, number: int) -> None:
    fleet = make_fleet(over_selection=1)
    rounds(fleet, 2)
    with pytest.raises(InputError) as caught:
        fleet.operations.rollback(number)
    assert str(caught.value) == (
        f"version {number}: not there to go back to; the last 50 versions up to 2, the first and the released one"
        " are kept"
    )
    assert len(fleet.history()) == 2


def test_the_last_versions_the_first_and_the_released_one_are_kept(make_fleet: Make) -> None:
    fleet = make_fleet(over_selection=1, keep_versions=3)
    versions = rounds(fleet, 4)
    assert there(fleet, versions) == [0, 2, 3, 4]
    assert fleet.operations.release(2) == versions[2]
    assert fleet.status()["released"] == 2
    versions = rounds(fleet, 4)
    assert there(fleet, versions) == [0, 2, 6, 7, 8]
    fleet.operations.release(0)
    versions = rounds(fleet, 1)
    assert there(fleet, versions) == [0, 7, 8, 9]
    assert fleet.operations.rollback(7).weights == versions[7]
    for gone in (1, 6):
        with pytest.raises(
            InputError, match=f"^version {gone}: not there to go back to; the last 3 versions up to 10,"
        ):
            fleet.operations.rollback(gone)
        with pytest.raises(InputError) as caught:
            fleet.operations.release(gone)
        assert str(caught.value) == (
            f"version {gone}: not there to be released; the last 3 versions up to 10, the first and the released one"
            " are kept"
        )
    assert [record.weights for record in fleet.history()[:9]] == versions[1:], "their names are remembered"


def test_the_version_before_the_latest_is_there_for_devices_that_are_late(make_fleet: Make) -> None:
    fleet = make_fleet(over_selection=1, keep_versions=1)
    versions = rounds(fleet, 3)
    assert there(fleet, versions) == [0, 2, 3]


def test_an_optimiser_s_state_goes_with_its_version(make_fleet: Make) -> None:
    fleet = make_fleet(over_selection=1, keep_versions=2)
    rounds(fleet, 1)
    with fleet.store.ledger(fleet.coordinator.task.round) as ledger:
        ledger.connection.execute(insert(OPTIMIZERS).values(round_id=fleet.history()[0].id, data=b"moments"))
    rounds(fleet, 1)
    assert fleet.store.optimizer(1) == b"moments"
    rounds(fleet, 1)
    assert fleet.store.optimizer(1) is None


@pytest.mark.parametrize("number", [-1, 2, 99])
def test_what_is_not_there_is_not_released(make_fleet: Make, number: int) -> None:
    fleet = make_fleet(over_selection=1)
    rounds(fleet, 1)
    with pytest.raises(InputError, match=f"^version {number}: not there to be released; the last 50 versions up to 1,"):
        fleet.operations.release(number)
    assert fleet.status()["released"] is None


def test_a_version_that_was_rolled_back_to_can_be_released(make_fleet: Make) -> None:
    fleet = make_fleet(over_selection=1)
    versions = rounds(fleet, 2)
    fleet.operations.rollback(1)
    assert fleet.operations.release(3) == versions[1]
