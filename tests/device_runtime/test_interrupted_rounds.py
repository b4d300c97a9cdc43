"""Real devices and a real server whose rounds are interrupted: by kills, lost answers, restarts, pauses, networks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.kills import CLIENT, SEED, kill_devices, serving, viewer
from benchmarks.proxy import proxy
from device_runtime.bundle import Bundle
from device_runtime.cli import main
from device_runtime.codec import encode
from device_runtime.device_state import DeviceState
from device_runtime.examples import Examples, ExampleTypes
from device_runtime.limits import Limits
from device_runtime.local_store import LocalStore
from device_runtime.messages import REPORT, STATUS, weights_path
from device_runtime.participant import Outcome, Participant, Session
from device_runtime.progress import SavePolicy
from device_runtime.server_client import ServerClient
from device_runtime.trainer import Trainer
from device_runtime.transport import RetryPolicy, Transport
from device_runtime.watch import Habits
from device_runtime.weights import load_weights
from device_runtime.work import ClientWork, client_seed
from tests.device_runtime.callers import enrolled

Capture = pytest.CaptureFixture[str]
WORK = ClientWork(epochs=3, batch_size=5, learning_rate=0.1, codec="q8")
EXAMPLES = (23, 0)  # count and seed
SHORT = ["--retry-seconds", "0.01", "--save-every", "1", "--save-seconds", "0.001", "--log-json"]


@pytest.fixture
def arguments(examples_file: Callable[[int, int], Path], tmp_path: Path) -> Callable[..., list[str]]:
    """The command line of a device that ends after a report."""

    def make(url: str, *options: str) -> list[str]:
        given = ["run", "--server", url, "--population", "digits_mlp", "--client", CLIENT, "--rounds", "1"]
        return [*given, "--data", str(examples_file(*EXAMPLES)), "--cache", str(tmp_path / "cache"), *SHORT, *options]

    return make


@contextmanager
def started(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "device_runtime.cli", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def names(told: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in told if event["event"] not in ("enrolled", "progress_saved")]


def status(url: str, folder: Path) -> dict[str, Any]:
    """What the server in this folder says of itself."""
    value: dict[str, Any] = json.loads(Transport(url, caller=viewer(folder)).request("GET", STATUS).body)
    return value


def history(url: str, folder: Path) -> list[dict[str, Any]]:
    """Its rounds that are over, once there is one: reports that are counted are committed a moment later."""
    until = time.monotonic() + 60
    while not (rounds := status(url, folder)["history"]) and time.monotonic() < until:
        time.sleep(0.02)
    return list(rounds)


def between_weights(url: str, folder: Path) -> bytes:
    """The weights that the second round of a server starts from."""
    path = weights_path(history(url, folder)[0]["weights"])
    return Transport(url, caller=viewer(folder)).request("GET", path).body


def undisturbed(bundle: Bundle, examples: Examples, number: int = 1) -> bytes:
    manifest, seed = bundle.manifest, client_seed(SEED, number, CLIENT)
    work = ClientWork(**{**WORK.to_json(), "seed": seed})
    update = Trainer(bundle).train(bundle.initial_weights(), examples, work, number).collect()
    return encode(update, manifest.tensors, manifest.model_id, work.codec, seed)


@pytest.fixture
def expected(digits_bundle: Bundle, digits_examples: Callable[[int, int], Examples]) -> bytes:
    return undisturbed(digits_bundle, digits_examples(*EXAMPLES))


def test_kills_at_random_instants(digits_bundle: Bundle, digits_examples: Callable[[int, int], Examples]) -> None:
    work = ClientWork(epochs=150, batch_size=5, learning_rate=0.05, codec="q8")
    account = kill_devices(digits_bundle, digits_examples(60, 1), work, 6, 1, lambda kills, faults: None)
    assert account.faults == []
    assert (account.kills.total(), account.rounds >= 1) == (6, True)
    assert str(account).startswith("6 kills (")
    assert str(account).endswith("; 0 faults")


def test_an_answer_that_is_lost(
    digits_bundle: Bundle, arguments: Callable[..., list[str]], tmp_path: Path, capsys: Capture, expected: bytes
) -> None:
    reports: list[bytes] = []
    lost = [True, True, False]

    def before(path: str, body: bytes) -> bool:
        if path == REPORT:
            reports.append(body)
        return True

    with serving(digits_bundle, tmp_path, WORK) as url:
        with proxy(lambda: url, before, lambda path, _: path != REPORT or not lost.pop(0)) as between:
            assert main(arguments(between)) == 0
        counts = history(url, tmp_path)[0]["counts"]
        total = status(url, tmp_path)["counts"]
    assert reports == [expected] * 3
    assert (counts["reported"], total["refused"]) == (1, {"duplicate": 2})
    told = events(capsys.readouterr().out)
    assert names(told) == ["training", "reported"]


@pytest.mark.parametrize("counted", [False, True])
def test_a_kill_between_the_report_and_its_answer(
    digits_bundle: Bundle,
    arguments: Callable[..., list[str]],
    tmp_path: Path,
    capsys: Capture,
    expected: bytes,
    counted: bool,
) -> None:
    """The next process sends what was made, and does not train again; whether the server has counted it or not."""
    reports: list[bytes] = []

    with serving(digits_bundle, tmp_path, WORK) as url:
        device: subprocess.Popen[str]

        def before(path: str, body: bytes) -> bool:
            if path == REPORT:
                reports.append(body)
                if not counted and device.poll() is None:
                    device.kill()
                    return False
            return True

        def after(path: str, _: bytes) -> bool:
            if path == REPORT and device.poll() is None:
                device.kill()
                return False
            return True

        with proxy(lambda: url, before, after) as between:
            with started(arguments(between)) as device:
                told = events(device.communicate()[0])
            assert names(told) == ["training"]
            assert status(url, tmp_path)["counts"]["reported"] == int(counted)
            assert main(arguments(between)) == 0
        assert [entry["counts"]["reported"] for entry in history(url, tmp_path)] == [1]
    assert set(reports) == {expected}
    told = events(capsys.readouterr().out)
    assert names(told) == ["update_found", "reported"]
    assert told[0]["bytes"] == len(expected)


def test_a_server_that_was_started_anew(
    digits_bundle: Bundle, arguments: Callable[..., list[str]], tmp_path: Path, capsys: Capture, expected: bytes
) -> None:
    """It knows device and token again: the update counts."""
    reports: list[bytes] = []
    device: subprocess.Popen[str]

    def before(path: str, body: bytes) -> bool:
        if path == REPORT:
            reports.append(body)
            if device.poll() is None:
                device.kill()
                return False
        return True

    url = ""
    with proxy(lambda: url, before) as between:
        with serving(digits_bundle, tmp_path, WORK) as url, started(arguments(between)) as device:
            device.communicate()
        with serving(digits_bundle, tmp_path, WORK) as url:
            assert main(arguments(between)) == 0
            (entry,) = history(url, tmp_path)
    assert (entry["counts"]["reported"], entry["counts"]["refused"]) == (1, {})
    assert set(reports) == {expected}
    assert names(events(capsys.readouterr().out)) == ["update_found", "reported"]


def test_another_server_in_its_place(
    digits_bundle: Bundle, arguments: Callable[..., list[str]], tmp_path: Path, capsys: Capture
) -> None:
    """It knows neither device nor token: the device is to be enrolled, then gives its update up and trains anew."""
    device: subprocess.Popen[str]

    def before(path: str, body: bytes) -> bool:
        if path == REPORT and len(urls) == 1:
            device.kill()
            return False
        return True

    urls: list[str] = []
    with proxy(lambda: urls[-1], before) as between:
        folders = [tmp_path / "first", tmp_path / "second"]
        for folder in folders:
            folder.mkdir()
        with serving(digits_bundle, folders[0], WORK) as url:
            urls.append(url)
            with started(arguments(between)) as device:
                device.communicate()
        with serving(digits_bundle, folders[1], WORK) as url:
            urls.append(url)
            assert main(arguments(between)) == 5
            found, error = events(capsys.readouterr().out)
            assert (found["event"], error["exit_code"]) == ("update_found", 5)
            assert error["message"] == (
                "the server does not know this device by its secret, or has revoked it: enrol it anew with"
                " 'pocketfed-device enrol' and a code of the fleet's operator"
            )
            where = ["--server", between, "--client", CLIENT, "--cache", str(tmp_path / "cache")]
            assert main(["enrol", *where]) == 0
            assert capsys.readouterr().out == f"enrolled as '{CLIENT}' at {between}\n"
            assert main(arguments(between)) == 0
            (entry,) = history(url, folders[1])
    assert (entry["counts"]["reported"], entry["counts"]["refused"]) == (1, {"unknown_token": 1})
    told = events(capsys.readouterr().out)
    assert names(told) == ["update_found", "refused", "training", "reported"]
    assert told[1]["detail"] == "unknown_token: no round of this server gave out this token"


def test_a_server_that_is_away_when_the_report_comes(
    digits_bundle: Bundle, arguments: Callable[..., list[str]], tmp_path: Path, capsys: Capture, expected: bytes
) -> None:
    """For a moment: it is tried again for as long as the deadline allows, more often than other requests are."""
    away = [True] * 8
    with serving(digits_bundle, tmp_path, WORK) as url:
        with proxy(lambda: url, lambda path, _: path != REPORT or not (away and away.pop())) as between:
            assert main(arguments(between, "--attempts", "2")) == 0
        assert status(url, tmp_path)["counts"]["reported"] == 1
    assert names(events(capsys.readouterr().out)) == ["training", "reported"]


def test_downloads_that_break_off_again_and_again(
    digits_bundle: Bundle, arguments: Callable[..., list[str]], tmp_path: Path, capsys: Capture
) -> None:
    sizes: dict[str, list[int]] = {}

    def cut(path: str, size: int) -> int:
        sizes.setdefault(path.rsplit("/", 1)[1], []).append(size)
        return size if size < 4000 else 3000

    with serving(digits_bundle, tmp_path, WORK) as url:
        with proxy(lambda: url, cut=cut) as between:
            assert main(arguments(between, "--attempts", "2")) == 0
        assert status(url, tmp_path)["counts"]["reported"] == 1
    for name in ("train.tflite", "weights.safetensors", "golden.npz"):
        rests = [digits_bundle.manifest.files[name].size]
        while rests[-1] >= 4000:
            rests.append(rests[-1] - 3000)
        assert sizes[name] == rests
        assert len(rests) > 3
    capsys.readouterr()


class Charger:
    """Conditions that are unmet at certain looks."""

    def __init__(self, unmet: set[int]) -> None:
        self._unmet = unmet
        self.looks = 0

    def unmet(self) -> str | None:
        self.looks += 1
        return "not charging" if self.looks in self._unmet else None


def test_a_device_that_may_not_work_stops_within_a_step_and_goes_on(
    digits_bundle: Bundle,
    examples_file: Callable[[int, int], Path],
    tmp_path: Path,
    expected: bytes,
) -> None:
    """Looks: 1 before the check-in, then one after each step: 2 is step 1; 6, step 5, is unmet, and so are two more."""
    told: list[tuple[str, dict[str, Any]]] = []
    sleeps: list[float] = []
    reports: list[bytes] = []

    def before(path: str, body: bytes) -> bool:
        if path == REPORT:
            reports.append(body)
        return True

    charger = Charger({1, 7, 8, 9, 12})
    with (
        serving(digits_bundle, tmp_path, WORK) as url,
        proxy(lambda: url, before) as between,
        DeviceState(tmp_path / "state") as state,
    ):
        session = Participant(
            ServerClient(Transport(between, retry=RetryPolicy(2), caller=enrolled(url, tmp_path, CLIENT))),
            "digits_mlp",
            CLIENT,
            {"training": examples_file(*EXAMPLES)},
            tmp_path / "cache",
            state,
            Habits(save=SavePolicy(1000, 1000.0), conditions=charger, conditions_seconds=7.0),
            notice=lambda event, **fields: told.append((event, fields)),
            sleep=sleeps.append,
        ).take_part()
    assert (session.outcome, session.round_number) == (Outcome.REPORTED, 1)
    assert reports == [expected]
    assert charger.looks == 15 + 6  # 15 steps; 1 and 2 before the check-in, 8 to 10 and 13 while it waited
    assert [(event, fields.get("steps")) for event, fields in told] == [
        ("waiting", None),
        ("training", None),
        ("progress_saved", 5),
        ("paused", 5),
        ("waiting", None),
        ("resumed", None),
        ("progress_restored", 5),
        ("progress_saved", 7),
        ("paused", 7),
        ("resumed", None),
        ("progress_restored", 7),
        ("progress_saved", 15),
    ]
    assert sleeps.count(7.0) == 3
    assert told[0][1] == {"reason": "not charging"}


def test_a_device_that_is_told_to_end_keeps_its_progress(
    digits_bundle: Bundle, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    with serving(digits_bundle, tmp_path, ClientWork(epochs=20_000, batch_size=5)) as url:
        with started(arguments(url)) as device:
            assert device.stdout is not None
            told: list[str] = []
            while not told or json.loads(told[-1])["event"] != "progress_saved":
                told.append(device.stdout.readline())
            device.send_signal(signal.SIGTERM)
            rest = events(device.communicate()[0])
            assert device.returncode == 0
        assert [event["event"] for event in rest[-2:]] == ["progress_saved", "ended"]
        with started(arguments(url)) as device:
            assert device.stdout is not None
            restored = [json.loads(device.stdout.readline()) for _ in range(2)][1]
        assert (restored["event"], restored["steps"]) == ("progress_restored", rest[-2]["steps"])


def test_a_store_that_grows_while_a_training_is_interrupted(
    digits_bundle: Bundle,
    digits_examples: Callable[[int, int], Examples],
    arguments: Callable[..., list[str]],
    tmp_path: Path,
    capsys: Capture,
) -> None:
    """The training goes on with the examples that it began with; after a deletion it begins anew with what is left."""
    first, more = digits_examples(60, 1), digits_examples(30, 2)
    work = ClientWork(epochs=400, batch_size=5, learning_rate=0.05, codec="q8")
    reports: list[bytes] = []

    def before(path: str, body: bytes) -> bool:
        if path == REPORT:
            reports.append(body)
        return True

    def interrupt(command: list[str]) -> None:
        with started(command) as device:
            assert device.stdout is not None
            while json.loads(device.stdout.readline())["event"] != "progress_saved":
                pass

    expected, manifest = [], digits_bundle.manifest
    weights = digits_bundle.initial_weights()
    kept = Examples(np.concatenate([first.x[1:], more.x]), np.concatenate([first.y[1:], more.y]))
    with LocalStore(tmp_path / "store", ExampleTypes.of(manifest)) as store:
        ids = store.add(first.x, first.y).ids
    with serving(digits_bundle, tmp_path, work) as url, proxy(lambda: url, before) as between:
        command = [*arguments(between), "--data", str(tmp_path / "store")]
        interrupt(command)
        with LocalStore(tmp_path / "store") as store:
            store.add(more.x, more.y)
        assert main(command) == 0
        told = events(capsys.readouterr().out)
        assert names(told) == ["training", "progress_restored", "reported"]
        interrupt(command)
        with LocalStore(tmp_path / "store") as store:
            store.delete([ids[0]])
        assert main(command) == 0
        assert names(events(capsys.readouterr().out)) == ["training", "reported"]
        second = load_weights(between_weights(url, tmp_path), manifest.tensors)
    for number, (start, examples) in enumerate([(weights, first), (second, kept)], 1):
        seed = client_seed(SEED, number, CLIENT)
        update = Trainer(digits_bundle).train(start, examples, replace(work, seed=seed), number).collect()
        expected.append(encode(update, manifest.tensors, manifest.model_id, work.codec, seed))
    assert reports == expected


def test_a_training_that_takes_too_long_is_given_up_and_not_begun_again(
    digits_bundle: Bundle, examples_file: Callable[[int, int], Path], tmp_path: Path
) -> None:
    sessions: list[Session] = []

    class EnoughError(Exception):
        pass

    def tell(session: Session) -> None:
        sessions.append(session)
        if len(sessions) == 3:
            raise EnoughError

    sleeps: list[float] = []
    with (
        serving(digits_bundle, tmp_path, ClientWork(epochs=20_000, batch_size=5)) as url,
        DeviceState(tmp_path / "state") as state,
        pytest.raises(EnoughError),
    ):
        Participant(
            ServerClient(Transport(url, caller=enrolled(url, tmp_path, CLIENT))),
            "digits_mlp",
            CLIENT,
            {"training": examples_file(*EXAMPLES)},
            tmp_path / "cache",
            state,
            Habits(limits=Limits(seconds=0.2)),
            sleep=sleeps.append,
            jitter=lambda: 0.0,
        ).run(None, tell)
    assert sessions[0] == Session(Outcome.ABORTED, 1, "the work took longer than --max-seconds allows, 0.2")
    assert sessions[1:] == [Session(Outcome.REJECTED, detail="round_given_up")] * 2
    assert sleeps[-2:] == [1.0, 2.0]


def test_a_bundle_that_does_not_fit_is_refused_before_it_starts(
    digits_bundle: Bundle, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    with serving(digits_bundle, tmp_path, WORK) as url, started(arguments(url, "--max-memory", "5")) as device:
        _, error = events(device.communicate()[0])
        assert device.returncode == 2
    assert (error["event"], error["exit_code"]) == ("error", 2)
    assert error["message"].startswith("bundle 'digits_mlp': a training with batches of 5 needs about ")
    assert error["message"].endswith(" MB, --max-memory allows 5")
    assert not list(tmp_path.glob("cache/rounds/*/weights/*"))


def test_one_folder_for_rounds_and_installs(
    digits_bundle: Bundle, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    """What is remembered of a round is not among what an install replaces."""
    folder = tmp_path / "cache"
    assert main(["install", str(digits_bundle.path), "--root", str(folder)]) == 0
    with serving(digits_bundle, tmp_path, WORK) as url:
        assert main(arguments(url, "--root", str(folder))) == 0
    assert len(list(folder.glob("rounds/*/weights/*.safetensors"))) == 1
    assert sorted(path.name for path in (folder / "state").iterdir()) == ["current", "state.json"]


def test_a_log_that_can_t_be_written_does_not_end_a_round(
    digits_bundle: Bundle, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    """On a disk that is full, such as /dev/full."""
    with serving(digits_bundle, tmp_path, WORK) as url:
        command = [sys.executable, "-m", "device_runtime.cli", *arguments(url)]
        with Path("/dev/full").open("w") as full:
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, timeout=300)
        assert [entry["counts"]["reported"] for entry in history(url, tmp_path)] == [1]
