"""A device's part in a round, and its cache of bundles, with a server that is a few methods."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from device_runtime.bundle import MANIFEST, MANIFEST_SIGNATURE, WEIGHTS, Bundle, open_bundle
from device_runtime.bundle_cache import BundleCache
from device_runtime.codec import decode
from device_runtime.deadline import Clocks
from device_runtime.device_state import DeviceState
from device_runtime.errors import InputError, IntegrityError, NetworkError, TurnedAwayError
from device_runtime.examples import Examples, ExampleTypes
from device_runtime.files import Lock
from device_runtime.local_store import Limits as StoreLimits
from device_runtime.local_store import LocalStore
from device_runtime.messages import (
    CheckIn,
    CheckInReply,
    Configuration,
    EvaluationReport,
    ReportReply,
    TaskKind,
    bundle_path,
    weights_path,
)
from device_runtime.participant import Outcome, Participant, Session
from device_runtime.server_client import ServerClient
from device_runtime.watch import Habits
from device_runtime.work import ClientWork
from tests.device_runtime.file_server import FileServer, serve_files

ACCEPT = CheckInReply("accept", round_number=3, token="t", retry_after_seconds=0.5)
COMPLETE = CheckInReply("complete")


def training(path: Path) -> dict[TaskKind, Path]:
    """The examples of a device that trains."""
    return {"training": path}


class Files:
    """A server's files: those of a bundle, and its initial weights."""

    def __init__(self, bundle: Bundle) -> None:
        names = [MANIFEST, *bundle.manifest.files]
        self.content = {bundle_path(bundle.identity, name): bundle.file(name).read_bytes() for name in names}
        weights = bundle.manifest.files[WEIGHTS].sha256
        self.content[weights_path(weights)] = bundle.file(WEIGHTS).read_bytes()
        self.before: Callable[[], None] = lambda: None
        self.server: FileServer

    def find(self, path: str) -> bytes | None:
        self.before()
        return self.content.get(path)

    @property
    def asked(self) -> list[str]:
        return self.server.asked

    def client(self) -> ServerClient:
        return ServerClient(self.server.transport())


@dataclass
class Rounds:
    """The answers that a server gives to a device, in turn, and what the device sent."""

    check_ins: list[CheckInReply]
    configurations: list[Configuration] = field(default_factory=list)
    reports: list[ReportReply] = field(default_factory=list)
    received: list[bytes | EvaluationReport] = field(default_factory=list)
    offered: list[list[str]] = field(default_factory=list)


class Server(ServerClient):
    def __init__(self, files: Files, rounds: Rounds) -> None:
        super().__init__(files.server.transport())
        self._rounds = rounds

    def check_in(self, check_in: CheckIn) -> CheckInReply:
        assert (check_in.population, check_in.client) == ("digits", "phone")
        self._rounds.offered.append(check_in.tasks)
        return self._rounds.check_ins.pop(0)

    def configuration(self, token: str, holds: str | None = None) -> Configuration:
        assert token.startswith("t")
        return self._rounds.configurations.pop(0)

    def report(self, token: str, report: bytes | EvaluationReport, patience: float | None = None) -> ReportReply:
        assert token.startswith("t")
        self._rounds.received.append(report)
        return self._rounds.reports.pop(0)


@pytest.fixture
def files(digits_bundle: Bundle) -> Iterator[Files]:
    files = Files(digits_bundle)
    with serve_files(files.find) as files.server:
        yield files


@pytest.fixture
def start(digits_bundle: Bundle) -> Configuration:
    work = ClientWork(seed=5, codec="q8", deadline_seconds=100.0)
    weights = digits_bundle.manifest.files[WEIGHTS].sha256
    return Configuration("start", round_number=3, bundle=digits_bundle.identity, weights=weights, work=work.to_json())


@pytest.fixture
def sleeps() -> list[float]:
    return []


@pytest.fixture
def take_part(
    files: Files, examples_file: Callable[[int, int], Path], tmp_path: Path, sleeps: list[float]
) -> Callable[..., list[Session]]:
    """Run a participant through the given answers; the sessions that it told of."""

    def run(rounds: Rounds, limit: int | None = None, seconds_a_look: float = 0.0) -> list[Session]:
        now = [0.0]

        def clock() -> float:
            now[0] += seconds_a_look
            return now[0]

        sessions: list[Session] = []
        with DeviceState(tmp_path / "state") as state:
            Participant(
                Server(files, rounds),
                "digits",
                "phone",
                training(examples_file(23, 0)),
                tmp_path / "cache",
                state,
                sleep=sleeps.append,
                clocks=Clocks(device=clock),
                jitter=lambda: -0.5,
            ).run(limit, sessions.append)
        return sessions

    return run


def test_an_accepted_report(
    take_part: Callable[..., list[Session]], start: Configuration, digits_bundle: Bundle, sleeps: list[float]
) -> None:
    wait = Configuration("wait", retry_after_seconds=0.25)
    rounds = Rounds([ACCEPT, COMPLETE], [wait, wait, start], [ReportReply("accepted")])
    reported, complete = take_part(rounds)
    assert (reported.outcome, reported.round_number, complete.outcome) == (Outcome.REPORTED, 3, Outcome.COMPLETE)
    assert sleeps == [0.5, 0.25, 0.25]
    manifest = digits_bundle.manifest
    (report,) = rounds.received
    assert isinstance(report, bytes)
    update = decode(report, manifest.tensors, manifest.model_id)
    assert (update.weight, update.round_number) == (23, 3)
    assert reported.detail == f"loss {update.metrics['loss']:.4f}, {len(report)} bytes"


def test_a_rejection_is_waited_for_with_jitter(take_part: Callable[..., list[Session]], sleeps: list[float]) -> None:
    rejected, complete = take_part(Rounds([CheckInReply("reject", "cohort_full", retry_after_seconds=10), COMPLETE]))
    assert rejected == Session(Outcome.REJECTED, detail="cohort_full")
    assert complete == Session(Outcome.COMPLETE)
    assert sleeps == [pytest.approx(9.0)]


@pytest.mark.parametrize("reason", ["population", "client"])
def test_a_rejection_that_waiting_does_not_change(take_part: Callable[..., list[Session]], reason: str) -> None:
    with pytest.raises(TurnedAwayError) as caught:
        take_part(Rounds([CheckInReply("reject", reason)]))
    expected = "the server takes no part of population 'digits' as 'phone': check --population and --client"
    assert str(caught.value) == expected


def test_an_abandoned_round(take_part: Callable[..., list[Session]]) -> None:
    aborted, _ = take_part(Rounds([ACCEPT, COMPLETE], [Configuration("aborted")]))
    assert aborted == Session(Outcome.ABORTED, 3, "it ended without this device")


def test_a_deadline_that_passes(take_part: Callable[..., list[Session]], start: Configuration) -> None:
    rounds = Rounds([ACCEPT, COMPLETE], [start])
    aborted, _ = take_part(rounds, seconds_a_look=60.0)
    assert aborted == Session(Outcome.ABORTED, 3, "the deadline passed during the work")
    assert rounds.received == []


def test_a_round_that_was_given_up_is_not_begun_again(
    take_part: Callable[..., list[Session]], start: Configuration, sleeps: list[float]
) -> None:
    """The server gives the token again until the round is over: it is asked less and less often meanwhile."""
    work = ClientWork(learning_rate=1e30).to_json()
    check_ins = [ACCEPT, ACCEPT, ACCEPT, replace(ACCEPT, token="t2"), ACCEPT, COMPLETE]
    sessions = take_part(Rounds(check_ins, [replace(start, work=work), start], [ReportReply("aborted", "late")]))
    given_up = Session(Outcome.REJECTED, detail="round_given_up")
    assert [session.outcome.value for session in sessions] == [
        "aborted", "rejected", "rejected", "aborted", "rejected", "complete"
    ]  # fmt: skip
    assert [sessions[1], sessions[2], sessions[4]] == [given_up] * 3
    assert sleeps == pytest.approx([0.5, 0.9, 1.8, 0.5, 0.9])


def test_an_update_that_the_server_does_not_take_in_time(
    files: Files, start: Configuration, examples_file: Callable[[int, int], Path], tmp_path: Path
) -> None:
    now = [0.0]

    class Away(Server):
        def report(self, token: str, report: bytes | EvaluationReport, patience: float | None = None) -> ReportReply:
            asked.append(patience)
            now[0] += 70.0
            raise NetworkError("no route")

    asked: list[float | None] = []
    rounds = Rounds([ACCEPT], [start])
    with DeviceState(tmp_path / "state", Clocks(device=lambda: now[0])) as state:
        arguments = ("digits", "phone", training(examples_file(23, 0)), tmp_path / "cache", state)
        clocks = Clocks(device=lambda: now[0])
        participant = Participant(Away(files, rounds), *arguments, sleep=lambda _: None, clocks=clocks)
        with pytest.raises(NetworkError, match="no route"):
            participant.take_part()
        assert state.update is not None  # it is kept, for there is time left
        session = participant.take_part()
        assert state.update is None
    expected = "the deadline passed before the server took the report: no route"
    assert session == Session(Outcome.ABORTED, 3, expected)
    assert asked == [pytest.approx(100.0), pytest.approx(30.0)]


def test_without_a_deadline_an_update_is_kept_for_a_day(
    files: Files, start: Configuration, examples_file: Callable[[int, int], Path], tmp_path: Path
) -> None:
    asked: list[float | None] = []

    class Patient(Server):
        def report(self, token: str, report: bytes | EvaluationReport, patience: float | None = None) -> ReportReply:
            asked.append(patience)
            return ReportReply("accepted")

    work = ClientWork(seed=5).to_json()
    with DeviceState(tmp_path / "state") as state:
        arguments = ("digits", "phone", training(examples_file(23, 0)), tmp_path / "cache", state)
        server = Patient(files, Rounds([ACCEPT], [replace(start, work=work)]))
        session = Participant(server, *arguments, sleep=lambda _: None).take_part()
    assert session.outcome is Outcome.REPORTED
    assert asked == [pytest.approx(86_400, abs=60)]


def test_work_that_diverges_ends_the_round_and_not_the_device(
    take_part: Callable[..., list[Session]], start: Configuration
) -> None:
    work = ClientWork(learning_rate=1e30).to_json()
    aborted, complete = take_part(Rounds([ACCEPT, COMPLETE], [replace(start, work=work)], []))
    assert (aborted.outcome, complete.outcome) == (Outcome.ABORTED, Outcome.COMPLETE)
    assert aborted.detail.startswith("the training diverged")


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (ReportReply("aborted", "late", "too late"), Outcome.ABORTED),
        (ReportReply("refused", "norm", "too large"), Outcome.REFUSED),
    ],
)
def test_a_report_that_does_not_count(
    take_part: Callable[..., list[Session]], start: Configuration, reply: ReportReply, outcome: Outcome
) -> None:
    session, _ = take_part(Rounds([ACCEPT, COMPLETE], [start], [reply]))
    assert session == Session(outcome, 3, f"{reply.reason}: {reply.message}")


def test_only_counted_reports_count_and_a_duplicate_is_one(
    take_part: Callable[..., list[Session]], start: Configuration, files: Files
) -> None:
    replies = [ReportReply("aborted", "late"), ReportReply("refused", "duplicate"), ReportReply("accepted")]
    accepted = [replace(ACCEPT, token=f"t{number}") for number in range(9)]
    sessions = take_part(Rounds(accepted, [start] * 9, replies), limit=2)
    assert [session.outcome.value for session in sessions] == ["aborted", "reported", "reported"]
    assert len([path for path in files.asked if path.endswith(MANIFEST)]) == 1  # the bundle is loaded once


def test_an_update_that_can_t_be_kept_is_sent_all_the_same(
    files: Files, start: Configuration, examples_file: Callable[[int, int], Path], tmp_path: Path
) -> None:
    told: list[tuple[str, dict[str, object]]] = []
    rounds = Rounds([ACCEPT], [start], [ReportReply("accepted")])
    with DeviceState(tmp_path / "state") as state:
        (tmp_path / "state" / "update.new").mkdir()  # where it would be written
        participant = Participant(
            Server(files, rounds),
            "digits",
            "phone",
            training(examples_file(23, 0)),
            tmp_path / "cache",
            state,
            notice=lambda event, **fields: told.append((event, fields)),
            sleep=lambda _: None,
        )
        assert participant.take_part().outcome is Outcome.REPORTED
    (lost,) = [fields for event, fields in told if event == "update_not_kept"]
    path = tmp_path / "state" / "update"
    reason = f"{path}: can't write it: Is a directory; make room there, or change --cache or --state"
    assert lost == {"round": 3, "reason": reason}
    assert len(rounds.received) == 1


def test_what_an_update_lost_counts_once_whenever_the_device_is_killed(
    files: Files, start: Configuration, examples_file: Callable[[int, int], Path], tmp_path: Path
) -> None:
    """The server takes an update; the device ends before it has forgotten it, and sends it again."""

    class Killed(DeviceState):
        def settle(self, token: str | None = None) -> None:
            raise KeyboardInterrupt

    def a_round(kind: type[DeviceState], rounds: Rounds) -> Session:
        arguments = ("digits", "phone", training(examples_file(23, 0)), tmp_path / "cache")
        with kind(tmp_path / "state") as state:
            habits = Habits(error_feedback=True)
            return Participant(Server(files, rounds), *arguments, state, habits, sleep=lambda _: None).take_part()

    loss = tmp_path / "state" / "loss"
    a_round(DeviceState, Rounds([ACCEPT], [start], [ReportReply("accepted")]))
    first = loss.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        a_round(Killed, Rounds([replace(ACCEPT, token="t2")], [start], [ReportReply("accepted")]))
    second = loss.read_bytes()
    assert second != first
    session = a_round(DeviceState, Rounds([], [], [ReportReply("refused", "duplicate")]))
    assert session.outcome is Outcome.REPORTED
    assert loss.read_bytes() == second
    assert leftovers(tmp_path / "state") == ["loss", "weights"]


class AppStore:
    """An app's local store, and a device that takes part with it and calls `while_waiting` instead of sleeping."""

    def __init__(self, bundle: Bundle, examples: Callable[[int, int], Examples], folder: Path, files: Files) -> None:
        self.path = folder / "store"
        self.bundle, self.files, self.folder = bundle, files, folder
        self.examples = examples
        self.told: list[tuple[str, object]] = []
        with LocalStore(self.path, ExampleTypes.of(bundle.manifest)):
            pass

    def add(self, count: int, seed: int = 0) -> None:
        examples = self.examples(count, seed)
        with LocalStore(self.path) as store:
            store.add(examples.x, examples.y)

    def clear(self) -> None:
        with LocalStore(self.path) as store:
            store.clear()

    def notice(self, event: str, **fields: object) -> None:
        if event != "progress_saved":
            self.told.append((event, fields.get("reason", fields.get("examples"))))

    def take_part(
        self, rounds: Rounds, while_waiting: Callable[[float], None] = lambda seconds: None, **habits: Any
    ) -> list[Session]:
        sessions: list[Session] = []
        with DeviceState(self.folder / "state") as state:
            Participant(
                Server(self.files, rounds),
                "digits",
                "phone",
                training(self.path),
                self.folder / "cache",
                state,
                Habits(**habits),
                notice=self.notice,
                sleep=while_waiting,
            ).run(None, sessions.append)
        return sessions


@pytest.fixture
def app(
    digits_bundle: Bundle, digits_examples: Callable[[int, int], Examples], tmp_path: Path, files: Files
) -> AppStore:
    return AppStore(digits_bundle, digits_examples, tmp_path, files)


def test_a_device_without_examples_takes_no_place_and_goes_on_when_there_are_some(
    app: AppStore, start: Configuration
) -> None:
    waits: list[float] = []
    rounds = Rounds([ACCEPT, COMPLETE], [start], [ReportReply("accepted")])

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            assert len(rounds.check_ins) == 2  # it has not checked in
            app.add(12)

    reported, complete = app.take_part(rounds, wait, conditions_seconds=7.0)
    assert (reported.outcome, complete.outcome) == (Outcome.REPORTED, Outcome.COMPLETE)
    assert waits == [7.0, 7.0, 7.0, 0.5]
    assert app.told == [("waiting", "no local examples"), ("training", 12)]


def test_a_store_whose_examples_have_all_expired_is_as_one_without(app: AppStore) -> None:
    """What has expired is deleted, for all that no round may come to do it."""
    with LocalStore(app.path, clock=lambda: time.time() - 3600) as store:
        store.set_limits(StoreLimits(max_age=60.0))
        examples = app.examples(4, 1)
        store.add(examples.x, examples.y)
        assert store.count() == 4

    def wait(seconds: float) -> None:
        with LocalStore(app.path) as store:
            assert store.info().examples == 0
        app.add(1)

    assert app.take_part(Rounds([COMPLETE]), wait) == [Session(Outcome.COMPLETE)]
    assert app.told == [("waiting", "no local examples")]


def test_examples_that_go_after_the_check_in_end_the_round_and_not_the_device(
    app: AppStore, start: Configuration
) -> None:
    app.add(5)
    answers = [lambda: app.clear(), lambda: app.add(6), lambda: None, lambda: None]
    rounds = Rounds([ACCEPT, ACCEPT, replace(ACCEPT, token="t2"), COMPLETE], [start] * 2, [ReportReply("accepted")])
    sessions = app.take_part(rounds, lambda seconds: answers.pop(0)())
    message = f"{app.path}: holds no examples to train on; 'pocketfed-device data add' adds some"
    assert sessions[:2] == [Session(Outcome.ABORTED, 3, message), Session(Outcome.REJECTED, detail="round_given_up")]
    assert [session.outcome for session in sessions[2:]] == [Outcome.REPORTED, Outcome.COMPLETE]
    assert app.told == [("waiting", "no local examples"), ("training", 6)]


class Power:
    """A condition that is met until the given look, and ends the process at the next."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def unmet(self) -> str | None:
        self.looks -= 1
        if self.looks < 0:
            raise KeyboardInterrupt
        return "on battery" if self.looks == 0 else None


@pytest.fixture
def interrupted(app: AppStore, start: Configuration) -> AppStore:
    """After some steps of a training, which are saved, the device has ended."""
    app.add(23)
    with pytest.raises(KeyboardInterrupt):
        app.take_part(Rounds([ACCEPT], [start]), conditions=Power(3))
    assert (app.folder / "state" / "progress").exists()
    app.told.clear()
    return app


@pytest.mark.parametrize("conditions", [None, Power(1)], ids=["fit", "on battery"])
def test_what_was_trained_on_examples_that_are_gone_goes_with_them(
    interrupted: AppStore, conditions: Power | None
) -> None:
    interrupted.clear()

    def wait(seconds: float) -> None:
        assert not (interrupted.folder / "state" / "progress").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted.take_part(Rounds([]), wait, conditions=conditions)
    assert interrupted.told == [("waiting", "no local examples")]


def test_a_training_whose_examples_were_all_exchanged_is_given_up(interrupted: AppStore, start: Configuration) -> None:
    interrupted.clear()
    interrupted.add(4, 1)
    aborted, complete = interrupted.take_part(Rounds([ACCEPT, COMPLETE], [start]))
    assert (aborted.outcome, complete.outcome) == (Outcome.ABORTED, Outcome.COMPLETE)
    assert "holds no examples to train on" in aborted.detail
    assert not (interrupted.folder / "state" / "progress").exists()


def test_an_update_that_is_finished_is_sent_though_its_examples_are_gone(app: AppStore, start: Configuration) -> None:
    app.add(23)

    rounds = Rounds([ACCEPT], [start])
    with pytest.raises(IndexError):  # there is no answer to the report
        app.take_part(rounds)
    app.clear()
    app.told.clear()

    def wait(seconds: float) -> None:
        app.add(1)

    again = Rounds([COMPLETE], [], [ReportReply("accepted")])
    sessions = app.take_part(again, wait)
    assert [session.outcome for session in sessions] == [Outcome.REPORTED, Outcome.COMPLETE]
    assert again.received == rounds.received
    assert app.told == [("update_found", None), ("waiting", "no local examples")]


def test_work_that_is_none(take_part: Callable[..., list[Session]]) -> None:
    with pytest.raises(InputError, match=r"^client work: expected an object with "):
        take_part(Rounds([ACCEPT], [Configuration("start", work={"epochs": 1})]))


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_bundle_is_downloaded_once(files: Files, digits_bundle: Bundle, tmp_path: Path) -> None:
    identity, cache = digits_bundle.identity, tmp_path / "new" / "cache"
    for _ in range(2):
        bundle = BundleCache(cache).get(identity, files.client())
        assert (bundle.identity, bundle.path) == (identity, cache / identity)
    assert len(files.asked) == 2 + len(digits_bundle.manifest.files)  # with the manifest and its signature
    assert leftovers(cache) == [identity]


def test_a_bundle_that_was_damaged_here_is_downloaded_again(
    files: Files, digits_bundle: Bundle, tmp_path: Path
) -> None:
    first = BundleCache(tmp_path).get(digits_bundle.identity, files.client())
    first.file(WEIGHTS).write_bytes(b"damaged")
    again = BundleCache(tmp_path).get(digits_bundle.identity, files.client())
    assert again.file(WEIGHTS).read_bytes() == digits_bundle.file(WEIGHTS).read_bytes()
    assert len(files.asked) == 2 * (2 + len(digits_bundle.manifest.files))


def _half_removed(home: Path) -> None:
    (home / MANIFEST).unlink()


def _emptied(home: Path) -> None:
    shutil.rmtree(home)
    home.mkdir()


def _a_file(home: Path) -> None:
    shutil.rmtree(home)
    home.write_text("in its place")


def _within_another_folder(home: Path) -> None:
    home.rename(home.with_name("moved"))
    home.mkdir()
    home.with_name("moved").rename(home / "moved")
    (home / "moved" / WEIGHTS).write_bytes(b"damaged")


@pytest.mark.parametrize("damage", [_half_removed, _emptied, _a_file, _within_another_folder])
def test_whatever_became_of_a_bundle_here_it_is_downloaded_again(
    files: Files, digits_bundle: Bundle, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    identity = digits_bundle.identity
    damage(BundleCache(tmp_path).get(identity, files.client()).path)
    again = BundleCache(tmp_path).get(identity, files.client())
    assert (again.identity, again.path) == (identity, tmp_path / identity)
    assert leftovers(tmp_path) == [identity]


def test_a_download_that_was_killed_long_ago_is_removed(files: Files, digits_bundle: Bundle, tmp_path: Path) -> None:
    for name, age in ((".download-old", 100_000), (".download-new", 100)):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    BundleCache(tmp_path).get(digits_bundle.identity, files.client())
    assert leftovers(tmp_path) == sorted([".download-new", digits_bundle.identity])


def _old_bundles(bundle: Bundle, folder: Path, count: int) -> list[str]:
    """Other bundles in the cache, the first one used least recently."""
    names = [f"{number:x}" * 64 for number in range(count)]
    for age, name in zip(range(count, 0, -1), names, strict=True):
        shutil.copytree(bundle.path, folder / name)
        os.utime(folder / name, (time.time() - 1000 * age,) * 2)
    return names


def test_of_old_bundles_those_stay_that_were_used_last(files: Files, digits_bundle: Bundle, tmp_path: Path) -> None:
    others = ["rounds", "a" * 63, "f" * 65, "notes"]
    for name in others:
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    names = _old_bundles(digits_bundle, tmp_path, 6)
    cache = BundleCache(tmp_path)
    cache.get(digits_bundle.identity, files.client())
    assert leftovers(tmp_path) == sorted([*others, *names[3:], digits_bundle.identity])


def test_a_bundle_that_is_used_again_stays(files: Files, digits_bundle: Bundle, tmp_path: Path) -> None:
    """Which of them are used is known by the folders' times; a download of another makes room."""
    home, cache = tmp_path / digits_bundle.identity, BundleCache(tmp_path)
    cache.get(digits_bundle.identity, files.client())
    os.utime(home, (0, 0))
    names = _old_bundles(digits_bundle, tmp_path, 4)
    cache.get(digits_bundle.identity, files.client())
    assert leftovers(tmp_path) == sorted([*names, home.name])  # nothing new has come
    assert home.stat().st_mtime > time.time() - 60


def test_the_bundle_in_use_stays_whatever_the_clock_says(files: Files, digits_bundle: Bundle, tmp_path: Path) -> None:
    """A board without a clock starts in 1970, long before the times of what lies there."""
    names = _old_bundles(digits_bundle, tmp_path, 5)
    for name in names:
        os.utime(tmp_path / name, (time.time() + 10**6,) * 2)
    bundle = BundleCache(tmp_path).get(digits_bundle.identity, files.client())
    assert leftovers(tmp_path) == sorted([*names[2:], digits_bundle.identity])
    assert bundle.file(WEIGHTS).exists()


def test_an_old_bundle_that_can_t_be_removed_is_left(files: Files, digits_bundle: Bundle, tmp_path: Path) -> None:
    names = _old_bundles(digits_bundle, tmp_path, 5)
    shutil.rmtree(tmp_path / names[0])
    (tmp_path / names[0]).write_text("no folder, which is what is removed")
    os.utime(tmp_path / names[0], (0, 0))
    bundle = BundleCache(tmp_path).get(digits_bundle.identity, files.client())
    assert bundle.identity == digits_bundle.identity
    assert leftovers(tmp_path) == sorted([names[0], *names[2:], digits_bundle.identity])


def test_a_disk_that_is_full(
    files: Files, digits_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError) as caught:
        BundleCache(tmp_path).get(digits_bundle.identity, files.client())
    expected = "can't write it: No space left on device; make room there, or change --cache or --state"
    assert str(caught.value) == f"{tmp_path}: {expected}"


@pytest.mark.parametrize("name", ["manifest.json", "train.tflite", "infer.tflite", "weights.safetensors", "golden.npz"])
def test_a_file_that_was_changed_on_the_way_is_refused(
    files: Files, digits_bundle: Bundle, tmp_path: Path, name: str
) -> None:
    path = bundle_path(digits_bundle.identity, name)
    files.content[path] = bytes([files.content[path][0] ^ 1]) + files.content[path][1:]
    with pytest.raises(IntegrityError, match=f"^{path}: what the server sent does not have the SHA-256 "):
        BundleCache(tmp_path).get(digits_bundle.identity, files.client())
    assert leftovers(tmp_path) == []


def test_a_file_that_the_server_lacks(files: Files, digits_bundle: Bundle, tmp_path: Path) -> None:
    path = bundle_path(digits_bundle.identity, WEIGHTS)
    del files.content[path]
    with pytest.raises(NetworkError, match=f"^{path}: the server answers with status 404$"):
        BundleCache(tmp_path).get(digits_bundle.identity, files.client())
    assert leftovers(tmp_path) == [f".download-{digits_bundle.identity}"]
    files.content[path] = digits_bundle.file(WEIGHTS).read_bytes()
    files.asked.clear()
    BundleCache(tmp_path).get(digits_bundle.identity, files.client())
    assert not {"train.tflite", "infer.tflite"} & {where.rsplit("/", 1)[1] for where in files.asked}  # they were there
    assert leftovers(tmp_path) == [digits_bundle.identity]


@pytest.mark.parametrize("identity", ["", "../up", "a/b", "."])
def test_an_identity_that_is_a_path_is_refused(files: Files, tmp_path: Path, identity: str) -> None:
    with pytest.raises(IntegrityError, match=r"^bundle identity '.*': expected hexadecimal digits$"):
        BundleCache(tmp_path).get(identity, files.client())
    assert files.asked == []


def test_a_cache_that_cannot_be_written(files: Files, digits_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "cache"
    with pytest.raises(InputError, match=f"^{folder}: can't write it: Not a directory; make room there, or change "):
        BundleCache(folder).get(digits_bundle.identity, files.client())


def test_a_bundle_s_download_goes_on_in_another_process(files: Files, digits_bundle: Bundle, tmp_path: Path) -> None:
    """Files that are whole are not asked for again, and of the one that broke off only the rest is."""
    names = list(digits_bundle.manifest.files)
    whole = [digits_bundle.file(name).stat().st_size for name in names]
    files.server.cut = [10**6, whole[0], whole[1], 1000, 0]  # the manifest, which has no signature, then the files
    with pytest.raises(NetworkError, match=f"/{names[2]}: the answer broke off, {whole[2] - 1000} bytes too early"):
        BundleCache(tmp_path).get(digits_bundle.identity, files.client())
    files.asked.clear()
    files.server.ranges.clear()
    BundleCache(tmp_path).get(digits_bundle.identity, files.client())
    asked = [path.rsplit("/", 1)[1] for path in files.asked]
    assert asked == [MANIFEST, MANIFEST_SIGNATURE, names[2], names[3]]
    assert files.server.ranges == ["", "", "bytes=1000-", ""]
    assert leftovers(tmp_path) == [digits_bundle.identity]


@pytest.mark.skipif(not Lock.available, reason="needs locks")
def test_two_processes_that_download_a_bundle_at_once(files: Files, digits_bundle: Bundle, tmp_path: Path) -> None:
    lock = Lock(tmp_path / f".download-{digits_bundle.identity}.lock")
    assert lock.acquire()
    bundle = BundleCache(tmp_path).get(digits_bundle.identity, files.client())
    assert bundle.path == tmp_path / digits_bundle.identity
    lock.release()
    assert leftovers(tmp_path) == [digits_bundle.identity]


def test_two_devices_may_share_a_cache(files: Files, digits_bundle: Bundle, tmp_path: Path) -> None:
    home = tmp_path / digits_bundle.identity

    def another_process_was_faster() -> None:
        if not home.exists():
            shutil.copytree(digits_bundle.path, home)

    files.before = another_process_was_faster
    assert BundleCache(tmp_path).get(digits_bundle.identity, files.client()).path == home
    assert leftovers(tmp_path) == [digits_bundle.identity]
    assert open_bundle(home).identity == digits_bundle.identity
