"""Evaluation by the fleet: every so many versions, on the devices' own test examples."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import pytest
from pydantic_core import to_json

from device_runtime.work import ClientWork
from tests.aggregation_server.fleet import Fleet, evaluation

Make = Callable[..., Fleet]


def evaluating(make_fleet: Make, **fields: int) -> Fleet:
    """A fleet whose first version is evaluated now."""
    fleet = make_fleet(**{"over_selection": 1, "evaluate_every": 1} | fields)
    fleet.run_round("a", "b")
    assert fleet.status()["round_task"] == "evaluation"
    return fleet


def test_every_so_many_versions_one_is_evaluated(make_fleet: Make) -> None:
    fleet = make_fleet(goal_count=1, over_selection=1, evaluate_every=2, rounds=5)
    tasks = []
    while not fleet.status()["complete"]:
        fleet.join("a")
        configuration = fleet.configuration("a")
        tasks.append((configuration.task, configuration.round_number))
        number = configuration.round_number
        reply = fleet.report("a", evaluation(number) if configuration.task == "evaluation" else None, value=number)
        assert reply.verdict == "accepted"
        assert fleet.commit()
    assert tasks == [
        ("training", 1),
        ("training", 2),
        ("evaluation", 2),
        ("training", 3),
        ("training", 4),
        ("evaluation", 4),
        ("training", 5),
    ]
    assert [(record.task, record.number) for record in fleet.history()] == tasks


def test_the_last_version_is_evaluated_before_the_task_is_complete(make_fleet: Make) -> None:
    fleet = make_fleet(goal_count=1, over_selection=1, evaluate_every=3, rounds=3)
    for _ in range(3):
        fleet.run_round("a")
    assert (fleet.status()["complete"], fleet.status()["round_task"]) == (False, "evaluation")
    fleet.join("a")
    fleet.report("a", evaluation(3))
    assert fleet.commit()
    assert fleet.status()["complete"]


def test_an_evaluation_is_the_mean_over_all_predictions(make_fleet: Make, caplog: pytest.LogCaptureFixture) -> None:
    fleet = evaluating(make_fleet)
    weights = fleet.status()["weights"]
    fleet.join("b", "c")
    configuration = fleet.configuration("b")
    assert (configuration.task, configuration.round_number, configuration.weights) == ("evaluation", 1, weights)
    assert ClientWork.from_json(configuration.work).deadline_seconds == 180.0
    assert fleet.report("b", evaluation(1, count=10, correct=9.0, loss_sum=1.0)).verdict == "accepted"
    assert fleet.report("c", evaluation(1, count=90, correct=45.0, loss_sum=49.0)).verdict == "accepted"
    with caplog.at_level(logging.INFO, "aggregation_server"):
        assert fleet.commit()
    assert caplog.messages == ["version 1 evaluated: accuracy 0.54, loss 0.5"]
    status = fleet.status()
    assert (status["committed_rounds"], status["weights"], status["round_task"]) == (1, weights, "training")
    record = fleet.history()[-1]
    assert (record.task, record.outcome, record.number, record.weights) == ("evaluation", "committed", 1, weights)
    assert (record.accuracy, record.loss, record.examples, record.clients) == (0.54, 0.5, 100, 2)
    assert record.counts.upload_bytes > 0
    fleet.run_round("a", "b")
    assert [record.number for record in fleet.history()] == [1, 1, 2]


def test_a_mean_that_is_no_number_is_none(make_fleet: Make) -> None:
    fleet = evaluating(make_fleet)
    fleet.join("b", "c")
    for name in "bc":
        body = evaluation(1, count=10, correct=5.0, loss_sum=1.7e308)
        assert fleet.report(name, body).verdict == "accepted"
    assert fleet.commit()
    record = fleet.history()[-1]
    assert (record.outcome, record.loss, record.accuracy) == ("committed", None, 0.5)
    assert b"Infinity" not in to_json(fleet.status()), "a browser could not read the status any more"


def test_a_device_without_test_examples_is_not_asked_to_evaluate(make_fleet: Make) -> None:
    fleet = evaluating(make_fleet)
    (reply,) = fleet.check_in("c", tasks=("training",))
    assert (reply.decision, reply.reason) == ("reject", "other_task")
    fleet.join("b")


def test_a_device_without_training_examples_is_not_asked_to_train(make_fleet: Make) -> None:
    (reply,) = make_fleet().check_in("c", tasks=("evaluation",))
    assert (reply.decision, reply.reason) == ("reject", "other_task")


def test_an_evaluation_that_nobody_can_do_is_given_up(make_fleet: Make) -> None:
    fleet = evaluating(make_fleet, selection_timeout=10)
    fleet.check_in("a", tasks=("training",))
    fleet.tick(10)
    record = fleet.history()[-1]
    assert (record.task, record.outcome, record.reason) == ("evaluation", "abandoned", "selection_timeout")
    assert fleet.status()["round_task"] == "training"
    fleet.run_round("a", "b")
    assert fleet.status()["round_task"] == "evaluation", "the next version is evaluated again"


@pytest.mark.parametrize(
    ("body", "reason", "message"),
    [
        (b"{", "format", "evaluation: not JSON"),
        (b"[]", "format", "evaluation: not a JSON object"),
        (evaluation(2), "wrong_round", "evaluation: made in round 2, expected 1"),
        (evaluation(1, count=0, correct=0), "weight", "evaluation: count should be from 1 to "),
        (evaluation(1, correct=-1), "format", "evaluation: correct should be from 0 to count, 10, not -1"),
        (
            json.dumps({"round_number": 1, "count": 4, "correct": 4}).encode(),
            "format",
            "evaluation: loss_sum should be",
        ),
        (evaluation(1, loss_sum=float("inf")), "non_finite", "evaluation: correct and loss_sum should be finite"),
    ],
)
def test_an_evaluation_that_does_not_validate_is_refused(
    make_fleet: Make, body: bytes, reason: str, message: str
) -> None:
    fleet = evaluating(make_fleet)
    fleet.join("b", "c")
    reply = fleet.report("b", body)
    assert (reply.verdict, reply.reason) == ("refused", reason)
    assert reply.message.startswith(message)
    assert fleet.report("b", evaluation(1)).verdict == "accepted"


def test_a_report_of_the_other_task_is_refused(make_fleet: Make, make_report: Callable[..., bytes]) -> None:
    fleet = evaluating(make_fleet)
    training = fleet.tokens["a"]
    assert fleet.report("a", evaluation(1), token=training).verdict == "refused"
    fleet.join("b", "c")
    assert fleet.report("b", make_report()).reason == "format"
    assert fleet.coordinator.ticket(fleet.tokens["b"], "b") != fleet.coordinator.ticket(training, "a")


def test_an_evaluation_s_reports_survive_a_restart(make_fleet: Make) -> None:
    fleet = evaluating(make_fleet)
    fleet.join("b", "c")
    fleet.report("b", evaluation(1, correct=3))
    token = fleet.tokens["c"]
    fleet.close()
    again = make_fleet(over_selection=1, evaluate_every=1)
    again.report("c", evaluation(1, correct=4), token=token)
    assert again.commit()
    assert again.history()[-1].accuracy == 0.35


def test_a_rollback_ends_an_evaluation(make_fleet: Make) -> None:
    fleet = evaluating(make_fleet)
    fleet.join("b")
    fleet.operations.rollback(0)
    assert [(record.task, record.reason) for record in fleet.history()[1:]] == [
        ("evaluation", "rollback"),
        ("rollback", "to 0"),
    ]
    fleet.tick()
    assert (fleet.status()["round_task"], fleet.status()["round"]) == ("evaluation", 2)
