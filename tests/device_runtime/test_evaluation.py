"""A device's part in a round of evaluation, with a server that is a few methods, and from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.kills import viewer
from device_runtime.bundle import WEIGHTS, Bundle
from device_runtime.cli import main
from device_runtime.deadline import Clocks
from device_runtime.device_state import DeviceState
from device_runtime.errors import InputError
from device_runtime.examples import Examples, ExampleTypes, load_examples
from device_runtime.limits import Limits
from device_runtime.local_store import LocalStore
from device_runtime.messages import (
    STATUS,
    CheckInReply,
    Configuration,
    EvaluationReport,
    ReportReply,
    TaskKind,
    weights_path,
)
from device_runtime.participant import EndedError, Outcome, Participant, Session
from device_runtime.tensors import Weights, sha256
from device_runtime.trainer import Trainer
from device_runtime.transport import Transport
from device_runtime.watch import Habits
from device_runtime.weights import dump_weights, load_weights
from device_runtime.work import ClientWork
from tests.device_runtime.callers import believed
from tests.device_runtime.file_server import serve_files
from tests.device_runtime.test_participant import ACCEPT, COMPLETE, Files, Rounds, Server

MakeFile = Callable[[int, int], Path]
ACCEPTED = ReportReply("accepted")
WORK = ClientWork(batch_size=10, seed=5, deadline_seconds=100.0)


@pytest.fixture
def weights(digits_bundle: Bundle) -> Weights:
    """Others than the bundle's own."""
    return tuple(tensor * np.float32(1.5) for tensor in digits_bundle.initial_weights())


@pytest.fixture
def files(digits_bundle: Bundle, weights: Weights) -> Iterator[Files]:
    files = Files(digits_bundle)
    content = dump_weights(weights, digits_bundle.manifest.tensors)
    files.content[weights_path(sha256(content))] = content
    with serve_files(files.find) as files.server:
        yield files


@pytest.fixture
def evaluation(digits_bundle: Bundle, weights: Weights) -> Configuration:
    identity = sha256(dump_weights(weights, digits_bundle.manifest.tensors))
    return Configuration("start", 0.0, 3, "evaluation", digits_bundle.identity, identity, WORK.to_json())


class Device:
    """A device with this state folder, as often as it is started."""

    def __init__(self, files: Files, folder: Path, sources: dict[TaskKind, Path]) -> None:
        self.files, self.folder, self.sources = files, folder, sources
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.now = 0.0
        self.sleeps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)

    def take_part(self, rounds: Rounds, **habits: Any) -> list[Session]:
        sessions: list[Session] = []
        clocks = Clocks(device=lambda: self.now)
        with DeviceState(self.folder / "state", clocks) as state:
            self.participant = Participant(
                Server(self.files, rounds),
                "digits",
                "phone",
                self.sources,
                self.folder / "cache",
                state,
                Habits(**habits),
                notice=lambda event, **fields: self.told.append((event, fields)),
                sleep=self.sleep,
                clocks=clocks,
            )
            self.participant.run(None, sessions.append)
        return sessions

    def left(self) -> list[str]:
        """What it remembers of a round."""
        return sorted(path.name for path in (self.folder / "state").iterdir() if path.name != "weights")


@pytest.fixture
def device(files: Files, examples_file: MakeFile, tmp_path: Path) -> Device:
    return Device(files, tmp_path, {"evaluation": examples_file(23, 1)})


@pytest.fixture
def expected(digits_bundle: Bundle, weights: Weights, digits_examples: Callable[[int, int], Examples]) -> Any:
    """The sums of these weights over `examples_file(23, 1)`, an example at a time."""
    trainer = Trainer(digits_bundle)
    trainer.set_weights(weights, anchor=False)
    return trainer.evaluate(digits_examples(23, 1), 1)


def test_the_weights_are_evaluated_on_the_test_examples(
    device: Device, evaluation: Configuration, expected: Any
) -> None:
    rounds = Rounds([ACCEPT, COMPLETE], [evaluation], [ACCEPTED])
    reported, complete = device.take_part(rounds)
    (report,) = rounds.received
    assert isinstance(report, EvaluationReport)
    assert (report.round_number, report.count, report.correct) == (3, 23, expected.correct)
    assert report.loss_sum == pytest.approx(expected.loss_sum, rel=1e-6)
    assert (reported.outcome, reported.round_number, complete.outcome) == (Outcome.REPORTED, 3, Outcome.COMPLETE)
    detail = f"evaluation, loss {expected.loss:.4f}, accuracy {expected.accuracy:.4f}, 23 predictions"
    assert reported.detail == detail
    assert device.told == [("evaluating", {"round": 3, "examples": 23})]
    assert device.left() == []


def test_a_batch_is_of_the_work_s_size(
    device: Device, evaluation: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    evaluate = Trainer.evaluate

    def noted(self: Trainer, examples: Examples, batch_size: int, look: Callable[[], None]) -> Any:
        sizes.append(batch_size)
        return evaluate(self, examples, batch_size, look)

    monkeypatch.setattr(Trainer, "evaluate", noted)
    whole = replace(evaluation, work=replace(WORK, batch_size=None).to_json())
    device.take_part(Rounds([ACCEPT, ACCEPT, COMPLETE], [evaluation, whole], [ACCEPTED] * 2))
    assert sizes == [10, 23]


def test_a_device_offers_the_tasks_for_which_it_has_examples(
    files: Files, digits_bundle: Bundle, digits_examples: Callable[[int, int], Examples], tmp_path: Path
) -> None:
    stores: dict[TaskKind, Path] = {"training": tmp_path / "train.db", "evaluation": tmp_path / "test.db"}
    for path in stores.values():
        with LocalStore(path, ExampleTypes.of(digits_bundle.manifest)):
            pass
    examples = digits_examples(3, 0)
    device = Device(files, tmp_path, stores)

    def sleep(seconds: float) -> None:
        device.sleeps.append(seconds)
        with LocalStore(stores["training" if len(device.sleeps) == 2 else "evaluation"]) as store:
            store.add(examples.x, examples.y)

    device.sleep = sleep  # type: ignore[method-assign]
    rounds = Rounds([CheckInReply("reject", "busy", retry_after_seconds=1.0), COMPLETE])
    device.take_part(rounds)
    assert device.told == [("waiting", {"reason": "no local examples"})]
    assert rounds.offered == [["evaluation"], ["training", "evaluation"]]


@pytest.mark.parametrize(("task", "other"), [("training", "evaluation"), ("evaluation", "training")])
def test_a_round_of_a_task_that_was_not_offered_is_given_up(
    task: TaskKind, other: TaskKind, files: Files, examples_file: MakeFile, evaluation: Configuration, tmp_path: Path
) -> None:
    device = Device(files, tmp_path, {other: examples_file(5, 0)})
    rounds = Rounds([ACCEPT, ACCEPT, COMPLETE], [replace(evaluation, task=task)])
    aborted, rejected, _ = device.take_part(rounds)
    message = f"this device has no examples for a round of {task}, and did not offer to take part"
    assert aborted == Session(Outcome.ABORTED, 3, message)
    assert rejected == Session(Outcome.REJECTED, detail="round_given_up")
    assert rounds.received == []


def test_an_evaluation_that_is_ended_begins_again(device: Device, evaluation: Configuration, expected: Any) -> None:
    """By SIGTERM or a kill: nothing of it is kept, and nothing in the way of the next process."""

    class Ending:
        looks = 0

        def unmet(self) -> None:
            self.looks += 1
            if self.looks == 3:  # after the second batch
                device.participant.end()

    with pytest.raises(EndedError):
        device.take_part(Rounds([ACCEPT], [evaluation]), conditions=Ending())
    assert device.left() == []
    rounds = Rounds([ACCEPT, COMPLETE], [evaluation], [ReportReply("refused", "duplicate")])
    reported, _ = device.take_part(rounds)
    assert reported.outcome is Outcome.REPORTED
    assert [report.correct for report in rounds.received if isinstance(report, EvaluationReport)] == [expected.correct]


def test_a_device_that_may_not_work_waits_within_an_evaluation(
    device: Device, evaluation: Configuration, expected: Any
) -> None:
    class Charger:
        looks = 0

        def unmet(self) -> str | None:
            self.looks += 1
            return "not charging" if self.looks in (2, 3) else None

    rounds = Rounds([ACCEPT, COMPLETE], [evaluation], [ACCEPTED])
    reported, _ = device.take_part(rounds, conditions=Charger(), conditions_seconds=7.0)
    assert reported.outcome is Outcome.REPORTED
    assert [event for event, _ in device.told] == ["evaluating", "waiting"]
    assert device.sleeps.count(7.0) == 2
    (report,) = rounds.received
    assert isinstance(report, EvaluationReport) and report.correct == expected.correct


@pytest.mark.parametrize(
    ("conditions_seconds", "limits", "message"),
    [
        (60.0, Limits(), "the deadline passed during the work"),
        (40.0, Limits(seconds=0.5), None),  # waiting is no work
    ],
    ids=["deadline", "seconds"],
)
def test_what_passes_while_an_evaluation_waits(
    device: Device, evaluation: Configuration, conditions_seconds: float, limits: Limits, message: str | None
) -> None:
    class Charger:
        looks = 0

        def unmet(self) -> str | None:
            self.looks += 1
            return "not charging" if self.looks in (2, 3) else None

    def sleep(seconds: float) -> None:
        device.now += seconds

    device.sleep = sleep  # type: ignore[method-assign]
    habits = {"conditions": Charger(), "conditions_seconds": conditions_seconds, "limits": limits}
    session, _ = device.take_part(Rounds([ACCEPT, COMPLETE], [evaluation], [ACCEPTED]), **habits)
    if message is None:
        assert session.outcome is Outcome.REPORTED
    else:
        assert session == Session(Outcome.ABORTED, 3, message)
        assert device.left() == ["given-up"]


def test_an_evaluation_that_takes_too_long_is_given_up(
    device: Device, evaluation: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = Trainer.evaluate

    def slow(self: Trainer, examples: Examples, batch_size: int, look: Callable[[], None]) -> Any:
        device.now += 0.3
        return evaluate(self, examples, batch_size, look)

    monkeypatch.setattr(Trainer, "evaluate", slow)
    session, _ = device.take_part(Rounds([ACCEPT, COMPLETE], [evaluation]), limits=Limits(seconds=0.2))
    assert session == Session(Outcome.ABORTED, 3, "the work took longer than --max-seconds allows, 0.2")
    assert device.left() == ["given-up"]


def test_weights_that_are_not_sound_are_not_reported(
    files: Files, device: Device, evaluation: Configuration, digits_bundle: Bundle
) -> None:
    wild = tuple(tensor * np.float32(1e30) for tensor in digits_bundle.initial_weights())
    content = dump_weights(wild, digits_bundle.manifest.tensors)
    files.content[weights_path(sha256(content))] = content
    rounds = Rounds([ACCEPT, COMPLETE], [replace(evaluation, weights=sha256(content))])
    session, _ = device.take_part(rounds)
    assert session == Session(Outcome.ABORTED, 3, "the loss of these weights is not finite here")
    assert device.left() == ["given-up"]


@pytest.mark.parametrize(
    ("reply", "outcome", "left"),
    [
        (ReportReply("aborted", "late", "too late"), Outcome.ABORTED, []),
        (ReportReply("refused", "count", "too many"), Outcome.REFUSED, ["given-up"]),
    ],
)
def test_an_evaluation_that_does_not_count(
    device: Device, evaluation: Configuration, reply: ReportReply, outcome: Outcome, left: list[str]
) -> None:
    session, _ = device.take_part(Rounds([ACCEPT, COMPLETE], [evaluation], [reply]))
    assert session == Session(outcome, 3, f"{reply.reason}: {reply.message}")
    assert device.left() == left


def test_a_bundle_that_does_not_fit_is_not_evaluated(device: Device, evaluation: Configuration) -> None:
    with pytest.raises(InputError, match=r"^bundle 'digits_mlp': a training with batches of 10 needs about "):
        device.take_part(Rounds([ACCEPT], [evaluation]), limits=Limits(memory=5_000_000))


def test_run_takes_test_data_alone(
    script: Any, digits_bundle: Bundle, examples_file: MakeFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line, over HTTP; the bundle is installed, so that this server has no files."""
    root, test = tmp_path / "root", examples_file(23, 1)
    assert main(["install", str(digits_bundle.path), "--root", str(root)]) == 0
    believed(script.url, tmp_path)
    capsys.readouterr()
    start = Configuration(
        "start", 0.0, 7, "evaluation", digits_bundle.identity, digits_bundle.manifest.files[WEIGHTS].sha256,
        WORK.to_json(),
    )  # fmt: skip
    answers = [ACCEPT, start, ACCEPTED, COMPLETE]
    script.answers = [(200, json.dumps(answer.to_json()).encode()) for answer in answers]
    where = ["--server", script.url, "--client", "a", "--cache", str(tmp_path), "--root", str(root)]
    assert main(["run", *where, "--population", "p", "--test-data", str(test)]) == 0
    check_in, configuration, report, _ = script.requests
    assert json.loads(check_in[2])["tasks"] == ["evaluation"]
    trainer = Trainer(digits_bundle)
    trainer.set_weights(digits_bundle.initial_weights(), anchor=False)
    result = trainer.evaluate(load_examples(test, digits_bundle.manifest), 10)
    told = {"round_number": 7, "count": 23, "correct": result.correct, "loss_sum": result.loss_sum}
    assert (report[1], json.loads(report[2]), report[3]["Content-Type"]) == ("/v1/report", told, "application/json")
    assert configuration[3]["Pocketfed-Token"] == report[3]["Pocketfed-Token"] == "t"
    assert capsys.readouterr().out.splitlines() == [
        f"round 7: reported (evaluation, loss {result.loss:.4f}, accuracy {result.accuracy:.4f}, 23 predictions)",
        "the task is complete",
    ]


def test_run_needs_examples_of_one_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["run", "--server", "http://127.0.0.1:1", "--population", "p", "--cache", str(tmp_path)]
    assert main(where) == 2
    expected = "no examples: name those to train on with --data, or those to evaluate on with --test-data"
    assert capsys.readouterr().err == f"pocketfed-device: {expected}\n"
    assert main([*where, "--test-data", str(tmp_path / "no")]) == 2
    expected = f"{tmp_path / 'no'}: no such file; --test-data names a .npz file with the arrays x and y"
    assert capsys.readouterr().err == f"pocketfed-device: {expected}\n"


_SERVE = """
import sys
from pathlib import Path
from aggregation_server.rounds import RoundConfig
from aggregation_server.task import Task
from benchmarks.sides.serving import serve_here
from device_runtime.work import ClientWork
task = Task(
    RoundConfig(1, over_selection=1.0), ClientWork(), rounds=1, evaluate_every=1, retry_seconds=0.05, poll_seconds=0.05
)
serve_here(Path(sys.argv[1]), Path(sys.argv[2]), task)
"""


def test_a_real_server_s_version_is_evaluated_by_the_device_that_trained_it(
    digits_bundle: Bundle, examples_file: MakeFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [sys.executable, "-c", _SERVE, str(digits_bundle.path), str(tmp_path)]
    test = examples_file(23, 1)
    with subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            where = ["--server", url, "--population", "digits_mlp", "--client", "a", "--cache", str(tmp_path / "cache")]
            assert main(["run", *where, "--data", str(examples_file(12, 0)), "--test-data", str(test)]) == 0
            viewing = Transport(url, caller=viewer(tmp_path))
            history = json.loads(viewing.request("GET", STATUS).body)["history"]
            committed = next(record for record in history if record["task"] == "training")
            trained = viewing.request("GET", weights_path(committed["weights"])).body
        finally:
            server.terminate()
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("waiting for a round")]
    assert [line.partition(" (")[0] for line in lines] == [
        "enrolled as 'a'", "round 1: reported", "round 1: reported", "the task is complete"
    ]  # fmt: skip
    (evaluated,) = (record for record in history if record["task"] == "evaluation")
    trainer, tensors = Trainer(digits_bundle), digits_bundle.manifest.tensors
    trainer.set_weights(load_weights(trained, tensors, "committed weights"), anchor=False)
    result = trainer.evaluate(load_examples(test, digits_bundle.manifest))
    assert (evaluated["outcome"], evaluated["clients"]) == ("committed", 1)
    assert evaluated["loss"] == pytest.approx(result.loss, rel=1e-6)
    assert evaluated["accuracy"] == pytest.approx(result.accuracy, rel=1e-6)
