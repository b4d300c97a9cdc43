"""The command ``pocketfed-device``: exit codes, one line for an error, and a task with the real server."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.kills import viewer
from device_runtime import __version__, codec
from device_runtime.bundle import TRAIN_ARTIFACT, WEIGHTS, Bundle
from device_runtime.cli import main
from device_runtime.examples import Examples, ExampleTypes, load_examples
from device_runtime.local_store import LocalStore
from device_runtime.messages import STATUS, weights_path
from device_runtime.participant import Participant
from device_runtime.tensors import TensorSpec, Weights
from device_runtime.trainer import Trainer
from device_runtime.transport import Caller, Transport
from device_runtime.weights import dump_weights, load_weights
from device_runtime.work import ClientWork, client_seed
from tests.device_runtime.callers import believed, enrolled

Capture = pytest.CaptureFixture[str]
MakeFile = Callable[[int, int], Path]
WORK = ClientWork(epochs=2, batch_size=5, learning_rate=0.1, codec="q8")
CLIENTS = {"a": 12, "b": 30}  # name → number of examples

_SERVE = """
import sys
from pathlib import Path
from aggregation_server.rounds import RoundConfig
from aggregation_server.task import Task
from benchmarks.sides.serving import serve_here
from device_runtime.work import ClientWork
task = Task(
    RoundConfig(goal_count=2, over_selection=1.0, minimum_reports=2, selection_timeout=300, reporting_timeout=300),
    ClientWork(epochs=2, batch_size=5, learning_rate=0.1, codec="q8"),
    seed=9, rounds=2, retry_seconds=0.05, poll_seconds=0.05,
)
serve_here(Path(sys.argv[1]), Path(sys.argv[2]), task)
"""


@dataclass(frozen=True)
class Running:
    """A server in a process of its own, and who may look at it."""

    url: str
    viewer: Caller

    def get(self, path: str) -> bytes:
        return Transport(self.url, caller=self.viewer).request("GET", path, limit=1 << 30).body


@pytest.fixture(scope="module")
def server(digits_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The real server, with a task of two rounds for two devices."""
    folder = tmp_path_factory.mktemp("server")
    arguments = [sys.executable, "-c", _SERVE, str(digits_bundle.path), str(folder)]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, (folder / "log").read_text()
        yield Running(url, viewer(folder))
        process.terminate()
        assert process.wait(60) == 0
    assert (folder / "log").read_text() == ""


def run_arguments(url: str, data: Path, cache: Path, client: str = "a", population: str = "digits_mlp") -> list[str]:
    arguments = ["run", "--server", url, "--data", str(data), "--population", population]
    return [*arguments, "--client", client, "--cache", str(cache), "--attempts", "3", "--retry-seconds", "0.01"]


def simulated(bundle: Bundle, weights: Weights, number: int, examples: dict[str, Examples]) -> Weights:
    """The round's new weights as the paper says: w + Σ n_k·delta_k / Σ n_k, the deltas through the codec."""
    manifest = bundle.manifest
    total = [np.zeros(tensor.shape, np.float64) for tensor in weights]
    for client, local in examples.items():
        seed = client_seed(9, number, client)
        work = ClientWork(WORK.epochs, WORK.batch_size, WORK.learning_rate, seed=seed, codec=WORK.codec)
        update = Trainer(bundle).train(weights, local, work, number).collect()
        encoded = codec.encode(update, manifest.tensors, manifest.model_id, work.codec, seed)
        for tensor, delta in zip(total, codec.decode(encoded, manifest.tensors, manifest.model_id).delta, strict=True):
            tensor += len(local) * delta.astype(np.float64)
    count = sum(map(len, examples.values()))
    return tuple((w + t / count).astype(np.float32) for w, t in zip(weights, total, strict=True))


def test_a_whole_task_commits_what_a_simulation_computes(
    server: Running, digits_bundle: Bundle, examples_file: MakeFile, tmp_path: Path, capsys: Capture
) -> None:
    data = {client: examples_file(count, count) for client, count in CLIENTS.items()}

    def device(client: str) -> int:
        return main(run_arguments(server.url, data[client], tmp_path / "cache", client))

    with ThreadPoolExecutor(2) as devices:  # they share a cache
        assert list(devices.map(device, CLIENTS)) == [0, 0]
    captured = capsys.readouterr()
    lines = sorted(line for line in captured.out.splitlines() if not line.startswith("waiting for a round ("))
    assert captured.err == ""
    assert lines[:2] == ["enrolled as 'a'", "enrolled as 'b'"]
    assert [line.split(" (")[0] for line in lines[2:6]] == ["round 1: reported"] * 2 + ["round 2: reported"] * 2
    assert lines[6:] == ["the task is complete"] * 2

    now, manifest = json.loads(server.get(STATUS)), digits_bundle.manifest
    assert (now["complete"], now["committed_rounds"]) == (True, 2)
    weights = digits_bundle.initial_weights()
    examples = {client: load_examples(path, manifest) for client, path in data.items()}
    for record in now["history"]:
        committed = load_weights(server.get(weights_path(record["weights"])), manifest.tensors)
        expected = simulated(digits_bundle, weights, record["number"], examples)
        for got, want, before in zip(committed, expected, weights, strict=True):
            assert not np.array_equal(got, before)
            assert np.abs(got - want).max() <= 1e-6
        weights = committed
    assert now["history"][-1]["weights"] == now["weights"] != now["initial_weights"]


def one_line(capsys: Capture) -> str:
    """The only line on standard error, and nothing on standard output."""
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    prefix, message = line.split(": ", 1)
    assert prefix == "pocketfed-device"
    return message


def test_an_unknown_population(server: Running, examples_file: MakeFile, tmp_path: Path, capsys: Capture) -> None:
    enrolled(server.url, tmp_path / "cache" / "rounds", "c")
    assert main(run_arguments(server.url, examples_file(5, 0), tmp_path / "cache", "c", "others")) == 5
    expected = "the server takes no part of population 'others' as 'c': check --population and --client"
    assert one_line(capsys) == expected


def test_a_server_that_is_down(examples_file: MakeFile, tmp_path: Path, capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert main(run_arguments(url, examples_file(5, 0), tmp_path / "cache")) == 3
    assert one_line(capsys) == f"{url}/v1/enrol: Connection refused (3 attempts)"


def test_a_server_that_fails_is_asked_again(
    script: Any, examples_file: MakeFile, tmp_path: Path, capsys: Capture
) -> None:
    script.answers = [(503, b""), (200, b'{"decision": "complete"}')]
    believed(script.url, tmp_path / "cache")
    assert main(run_arguments(script.url, examples_file(5, 0), tmp_path / "cache")) == 0
    assert capsys.readouterr() == ("the task is complete\n", "")
    assert len(script.requests) == 2


def test_an_interrupted_run(
    examples_file: MakeFile, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Participant, "run", interrupted)
    believed("http://127.0.0.1:1", tmp_path)
    assert main(run_arguments("http://127.0.0.1:1", examples_file(5, 0), tmp_path)) == 130
    assert one_line(capsys) == "interrupted"


def test_a_run_without_its_data(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "no.npz"
    assert main(run_arguments("http://127.0.0.1:1", path, tmp_path)) == 2
    assert one_line(capsys) == f"{path}: no such file; --data names a .npz file with the arrays x and y"


def test_a_name_that_no_file_can_have(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / ("n" * 300)
    assert main(run_arguments("http://127.0.0.1:1", path, tmp_path)) == 2
    assert one_line(capsys) == f"{path}: no such file; --data names a .npz file with the arrays x and y"
    assert main(["selftest", str(path)]) == 2
    assert one_line(capsys) == f"{path}: can't look for a bundle there: File name too long"


def test_a_user_without_a_home(examples_file: MakeFile, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    arguments = ["run", "--server", "http://127.0.0.1:1", "--population", "p", "--data", str(examples_file(5, 0))]
    assert main(arguments) == 2
    assert one_line(capsys) == "this user has no home folder; name a folder for bundles with --cache"


def test_rejections_in_a_row_are_told_once(
    script: Any, examples_file: MakeFile, tmp_path: Path, capsys: Capture
) -> None:
    rejected = [b'{"decision": "reject", "reason": "%s", "retry_after_seconds": 0}' % reason for reason in (b"a", b"b")]
    aborted = [(200, b'{"decision": "accept", "round_number": 4, "token": "t"}'), (200, b'{"state": "aborted"}')]
    answers = [*((200, body) for body in rejected), *aborted, (200, rejected[1]), (200, b'{"decision": "complete"}')]
    script.answers = answers
    believed(script.url, tmp_path / "cache")
    assert main(run_arguments(script.url, examples_file(5, 0), tmp_path / "cache")) == 0
    assert capsys.readouterr().out.splitlines() == [
        "waiting for a round (a)",
        "round 4: aborted (it ended without this device)",
        "waiting for a round (b)",
        "the task is complete",
    ]


def test_a_person_is_told_what_a_device_waits_for(script: Any, digits_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "store"
    with LocalStore(path, ExampleTypes.of(digits_bundle.manifest)):
        pass
    believed(script.url, tmp_path / "cache")
    command = [sys.executable, "-m", "device_runtime.cli", *run_arguments(script.url, path, tmp_path / "cache")]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as device:
        assert device.stdout is not None
        assert device.stdout.readline() == "waiting: no local examples\n"
        device.terminate()
        assert device.stdout.read() == "ended, as it was told to\n"
    assert (device.returncode, script.requests) == (0, [])


def test_a_device_that_keeps_trying(
    script: Any, examples_file: MakeFile, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of an hour after the server failed or the task was complete, four hours after what stays; ± 20 %."""
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 6:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("time.sleep", wait)
    turned_away = b'{"decision": "reject", "reason": "client"}'
    damaged = b'{"state": "start", "round_number": 1, "bundle": "..", "work": null}'
    accepted = b'{"decision": "accept", "round_number": 1, "token": "t"}'
    complete = b'{"decision": "complete"}'
    next_task = [complete, complete, accepted, b'{"state": "aborted"}', complete]
    script.answers = [(400, b""), *((200, body) for body in (turned_away, accepted, damaged, *next_task))]
    believed(script.url, tmp_path / "cache")
    arguments = run_arguments(script.url, examples_file(5, 0), tmp_path / "cache")
    assert main([*arguments, "--keep-trying", "--log-json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in told] == [*["error"] * 3, "complete", "aborted", "complete", "ended"]
    assert [event["message"].split(":")[0] for event in told[:3]] == [
        "check-in", "the server takes no part of population 'digits_mlp' as 'a'", "client work",
    ]  # fmt: skip
    assert [event["retry_seconds"] for event in told[:3]] == waits[:3]
    assert all(720 <= wait <= 1080 for wait in [waits[0], *waits[3:]])
    assert all(11_520 <= wait <= 17_280 for wait in waits[1:3])
    assert len(waits) == 6


def test_a_run_with_a_wrong_url(examples_file: MakeFile, tmp_path: Path, capsys: Capture) -> None:
    assert main(run_arguments("127.0.0.1:80", examples_file(5, 0), tmp_path)) == 2
    assert one_line(capsys) == "server '127.0.0.1:80': expected a URL such as http://127.0.0.1:8080"


@pytest.mark.parametrize("name", codec.CODECS)
def test_train_writes_the_update(
    digits_bundle: Bundle, examples_file: MakeFile, tmp_path: Path, capsys: Capture, name: str
) -> None:
    data, out, manifest = examples_file(23, 0), tmp_path / "update", digits_bundle.manifest
    options = ["--epochs", "2", "--batch-size", "5", "--lr", "0.2", "--proximal", "0.5", "--seed", "3", "--round", "7"]
    arguments = ["train", str(digits_bundle.path.parent), "--data", str(data), "--out", str(out), "--codec", name]
    assert main([*arguments, *options]) == 0
    work = ClientWork(2, 5, 0.2, 0.5, seed=3, codec=name)
    examples = load_examples(data, manifest)
    update = Trainer(digits_bundle).train(digits_bundle.initial_weights(), examples, work, 7).collect()
    assert out.read_bytes() == codec.encode(update, manifest.tensors, manifest.model_id, name, 3)
    assert codec.decode(out.read_bytes(), manifest.tensors, manifest.model_id).round_number == 7
    expected = f"{out}: {out.stat().st_size} bytes, 23 examples, loss {update.metrics['loss']:.4f}\n"
    assert capsys.readouterr() == (expected, "")


def test_train_starts_from_the_weights_it_is_given(
    digits_bundle: Bundle, examples_file: MakeFile, tmp_path: Path
) -> None:
    data, out, manifest = examples_file(9, 0), tmp_path / "update", digits_bundle.manifest
    weights = tuple(tensor * np.float32(0.5) for tensor in digits_bundle.initial_weights())
    (tmp_path / "w").write_bytes(dump_weights(weights, manifest.tensors))
    arguments = ["train", str(digits_bundle.path), "--data", str(data), "--out", str(out), "--batch-size", "all"]
    assert main([*arguments, "--weights", str(tmp_path / "w")]) == 0
    examples = load_examples(data, manifest)
    expected = Trainer(digits_bundle).train(weights, examples, ClientWork(batch_size=None), 1).collect()
    assert out.read_bytes() == codec.encode(expected, manifest.tensors, manifest.model_id, "f32", 0)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--data", "{tmp}/no.npz"], 2, "{tmp}/no.npz: can't read the examples: No such file or directory"),
        (["--weights", "{tmp}/other"], 4, "{tmp}/other: these are the weights of another model (missing: "),
        (["--weights", "{tmp}/no"], 2, "{tmp}/no: can't read the weights: No such file or directory"),
        (["--out", "{tmp}/no/out"], 2, "{tmp}/no/out: can't write the update: No such file or directory"),
        (["--codec", "q3"], 2, "unknown codec 'q3'; known codecs: f32, f16, q8, q4, q2, q1"),
        (["--epochs", "0"], 2, "client work: epochs should be a whole number of at least 1, not 0"),
        (["--lr", "0"], 2, "client work: learning_rate should be a finite number above 0, not 0.0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_of_train(
    digits_bundle: Bundle,
    examples_file: MakeFile,
    tmp_path: Path,
    capsys: Capture,
    options: list[str],
    code: int,
    message: str,
) -> None:
    (tmp_path / "other").write_bytes(dump_weights((np.zeros(1, np.float32),), (TensorSpec("other", (1,)),)))
    arguments = ["train", str(digits_bundle.path), "--data", str(examples_file(9, 0)), "--out", str(tmp_path / "out")]
    assert main([*arguments, *(option.format(tmp=tmp_path) for option in options)]) == code
    assert one_line(capsys).startswith(message.format(tmp=tmp_path))
    assert not (tmp_path / "out").exists()


def test_selftest_passes(digits_bundle: Bundle, capsys: Capture) -> None:
    assert main(["selftest", str(digits_bundle.path.parent), "--threads", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("self-test passed on ")
    assert captured.out.endswith(", tolerance 1e-04\n")
    assert captured.err == ""


@pytest.mark.parametrize("name", [TRAIN_ARTIFACT, WEIGHTS])
def test_selftest_of_a_changed_bundle(digits_copy: Path, capsys: Capture, name: str) -> None:
    data = bytearray((digits_copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (digits_copy / name).write_bytes(data)
    assert main(["selftest", str(digits_copy)]) == 4
    expected = f"{digits_copy / name}: its SHA-256 is not the manifest's: changed or damaged; copy it again"
    assert one_line(capsys) == expected


def test_selftest_of_nothing(tmp_path: Path, capsys: Capture) -> None:
    assert main(["selftest", str(tmp_path / "no")]) == 2
    assert one_line(capsys) == f"{tmp_path / 'no'}: no such bundle; make one with 'pocketfed export'"


@pytest.mark.parametrize("command", [[], ["run"], ["train"], ["selftest"]], ids=" ".join)
def test_help_is_plain_text_with_the_exit_codes(command: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "exit codes: 0 done, 1 a check failed, 2 wrong usage" in " ".join(text.split())
    assert text.isascii()  # a device's terminal need not be UTF-8


def test_the_version(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"pocketfed-device {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["selftest", "b", "--threads", "0"], "argument --threads: 0 is not a whole number of at least 1"),
        (["selftest", "b", "--threads", "1025"], "argument --threads: 1025 is more than 1024"),
        (["selftest", "b", "--threads", "²"], "argument --threads: ² is not a whole number of at least 1"),
        (["selftest", "b", "--threads", "two"], "argument --threads: two is not a whole number of at least 1"),
        (["run", "--timeout", "0"], "argument --timeout: 0 is not a number of seconds above 0"),
        (["run", "--max-memory", "0"], "argument --max-memory: 0 is not a number of megabytes above 0"),
        (["run", "--max-memory", "all"], "argument --max-memory: all is not a number of megabytes above 0"),
        (["train", "b", "--max-seconds", "0"], "argument --max-seconds: 0 is not a number of seconds above 0"),
        (["run", "--save-every", "0"], "argument --save-every: 0 is not a whole number of at least 1"),
        (["run", "--timeout", "nan"], "argument --timeout: nan is not a number of seconds above 0"),
        (["run", "--retry-seconds", "inf"], "argument --retry-seconds: inf is not a number of seconds above 0"),
        (["run", "--retry-seconds", "soon"], "argument --retry-seconds: soon is not a number of seconds above 0"),
        (["train", "b", "--batch-size", "0"], "argument --batch-size: 0 is not a whole number of at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(arguments: list[str], message: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {message}")
