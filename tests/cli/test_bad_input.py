"""Wrong usage and bad input: an exit code, one line that says what and where, and never a traceback."""

from __future__ import annotations

import importlib.util
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import pytest

from cli.data_options import DATASET_NAMES, PARTITION_NAMES
from cli.main import app, main
from cli.options import MODEL_NAMES, BatchSize
from device_runtime.bundle import Bundle
from device_runtime.examples import Examples
from tff_sim.population import write_population

pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")

KNOWN_MODELS = f"known models: {', '.join(MODEL_NAMES)}"
UNKNOWN_DATASET = f"unknown data set 'cifar'; known data sets: {', '.join(DATASET_NAMES)}"


def _line(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that is to fail; the one line that it says."""
    assert main(arguments) == code
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("pocketfed: ")
    return line.removeprefix("pocketfed: ")


needs_tff = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_federated") is None, reason="simulation is not available on this machine"
)


@needs_tff
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnet"], f"unknown model 'resnet'; {KNOWN_MODELS}"),
        (["--dataset", "cifar"], UNKNOWN_DATASET),
        (["--partition", "by-hand"], f"unknown partition 'by-hand'; known partitions: {', '.join(PARTITION_NAMES)}"),
        (["--clients", "0"], "can't deal 1437 examples to 0 clients by 'iid': change --clients"),
        (["--clients", "2000"], "can't deal 1437 examples to 2000 clients by 'iid': change --clients"),
        (
            ["--dataset", "mnist", "--model", "mnist_2nn"],
            "data set 'mnist': --data-dir is missing; it names the folder with the four MNIST files",
        ),
        (
            ["--data-dir", "mnist"],
            "data set 'digits' is embedded, and needs no --data-dir: leave it out, or name its data set with --dataset",
        ),
        (
            ["--model", "mnist_2nn"],
            "model 'mnist_2nn' takes examples of (28, 28, 1), data set 'digits' has (8, 8, 1):"
            " choose another model, or another --dataset",
        ),
        (["--drop-out", "2"], "--drop-out should be from 0 to 1, not 2.0"),
        (["--deadline", "0"], "--deadline should be above 0, not 0.0"),
        (
            ["--momentum", "0.5"],
            "--momentum has no effect without --optimizer momentum: leave it out, or give that too",
        ),
        (
            ["--malicious-kind", "scaled"],
            "--malicious-kind has no effect without --malicious: leave it out, or give that too",
        ),
        (
            ["--malicious", "0.1", "--fault-scale", "3"],
            "--fault-scale has no effect without --corrupt-kind scaled or --malicious-kind scaled: leave it out, or"
            " give that too",
        ),
        (
            ["--label-hours", "3"],
            "--label-hours has no effect without --availability: leave it out, or give that too",
        ),
        (
            ["--device-spread", "1"],
            "--device-spread has no effect without --deadline or --over-selection: leave it out, or give that too",
        ),
        (["--config", "nowhere.toml"], "nowhere.toml: can't read it: No such file or directory"),
        (["--fraction", "1.5"], "--fraction should be from 0 to 1, not 1.5"),
        (["--availability", "0"], "--availability should be above 0 and at most 1, not 0.0"),
        (
            ["--optimizer", "momentum", "--momentum", "2"],
            "--momentum should be a number of at least 0 and below 1, not 2.0",
        ),
        (["--clip-norm", "0"], "--clip-norm should be a finite number above 0, or 'none', not 0.0"),
        (
            ["--added", "0.5"],
            "--added has no effect without --present or --deleted: leave it out, or give that too",
        ),
        (["--rounds", "0"], "--rounds should be at least 1, not 0"),
        (["--target-accuracy", "97"], "--target-accuracy should be above 0 and at most 1, not 97.0"),
        (["--epochs", "0"], "--epochs should be a whole number of at least 1, not 0"),
        (
            ["--batch-size", "100000000000"],
            "--batch-size should be a whole number from 1 to 2**31 - 1, or 'all' for the whole local set,"
            " not 100000000000",
        ),
        (["--lr", "-0.1"], "--lr should be a finite number above 0, not -0.1"),
        (["--lr", "nan"], "--lr should be a finite number above 0, not nan"),
        (["--proximal", "-1"], "--proximal should be a finite number of at least 0, not -1.0"),
        (["--seed", "-1"], "--seed should be a whole number from 0 to 2**53 - 1, not -1"),
        (["--workers", "10.0.0.2"], "worker '10.0.0.2' should be HOST:PORT, such as 10.0.0.2:8000 or [fd00::2]:8000"),
        (["--workers", "10.0.0.2:8000,10.0.0.2:8000"], "worker 10.0.0.2:8000 is named twice; name each once"),
    ],
)
def test_simulate(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert _line(["simulate", *arguments, "--out", str(out)], 2, capsys) == message
    assert not out.exists()  # a run that can't start leaves nothing


@needs_tff
def test_simulate_where_no_worker_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as bound:  # and not listening, so that nobody else does
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        arguments = ["simulate", "--clients", "20", "--workers", address, "--out", str(tmp_path)]
        assert _line(arguments, 3, capsys) == (
            f"worker {address} can't be reached (Connection refused); is 'pocketfed worker' running there, with --bind?"
        )


@needs_tff
def test_simulate_with_a_missing_folder_of_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "nowhere"
    arguments = ["simulate", "--model", "mnist_2nn", "--dataset", "mnist", "--data-dir", str(missing)]
    assert _line([*arguments, "--out", str(tmp_path / "run")], 2, capsys) == (
        f"{missing}: no such folder; --data-dir should hold the four MNIST files"
    )


def _clients(folder: Path, x: type, labels: npt.NDArray[Any], test_labels: npt.NDArray[Any] | None = None) -> None:
    folder.mkdir()
    images: npt.NDArray[Any] = np.zeros((len(labels), 8, 8, 1), x)
    np.savez(folder / "one.npz", x=images, y=labels)
    np.savez(folder / "_test.npz", x=images, y=labels if test_labels is None else test_labels)


DIGITS = np.array([0, 9, 3], np.int32)


@needs_tff
@pytest.mark.parametrize("engine", ["tff", "device"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((np.int32, DIGITS), "takes examples of float32 (8, 8, 1), data set 'npz' has int32 (8, 8, 1)"),
        ((np.float32, DIGITS.astype(np.float32)), "takes labels of int32 (), data set 'npz' has float32 ()"),
        ((np.float32, np.stack([DIGITS, DIGITS], 1)), "takes labels of int32 (), data set 'npz' has int32 (2,)"),
        ((np.float32, DIGITS + 1), "takes labels from 0 to 9, data set 'npz' has 1 to 10"),
        ((np.float32, DIGITS - 1), "takes labels from 0 to 9, data set 'npz' has -1 to 8"),
        ((np.float32, DIGITS, DIGITS * 5), "takes labels from 0 to 9, data set 'npz' has 0 to 45"),
    ],
)
def test_data_that_the_model_can_t_learn_from(
    engine: str, data: tuple[Any, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorFlow ends in pages of its own, and a device trains on, to something else."""
    _clients(tmp_path / "data", *data)
    out = tmp_path / "run"
    arguments = ["--dataset", "npz", "--data-dir", str(tmp_path / "data"), "--engine", engine, "--out", str(out)]
    line = _line(["simulate", *arguments], 2, capsys)
    assert line == f"model 'digits_mlp' {message}: choose another model, or another --dataset"
    assert not out.exists()


@needs_tff
@pytest.mark.parametrize("engine", ["tff", "device"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", np.nan, "client 'phone-1' has values that are not finite: write it again without those examples"),
        (
            "y",
            -3,
            "client 'phone-1' has labels from -3 to -3; by population.json expected 0 to 9: write it again",
        ),
        ("test_x", np.nan, "the test set has values that are not finite: write it again without those examples"),
    ],
)
def test_a_population_of_spoilt_values(
    engine: str, name: str, value: float, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not a training that diverges, nor an accuracy of examples that are no numbers."""
    part = Examples(np.zeros((3, 8, 8, 1), np.float32), DIGITS)
    write_population(tmp_path / "fleet", [("phone-0", part), ("phone-1", part)], part)
    path = tmp_path / "fleet" / f"{name}.npy"
    array = np.load(path)
    array[-3:] = value  # of the second client; the first is looked at before the first round
    np.save(path, array)
    arguments = ["--dataset", "packed", "--data-dir", str(tmp_path / "fleet"), "--fraction", "1", "--engine", engine]
    assert _line(["simulate", *arguments, "--out", str(tmp_path / "run")], 2, capsys) == f"{path}: {message}"


@needs_tff
def test_simulate_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert _line(["simulate", "--out", str(taken)], 2, capsys) == (
        f"{taken}: can't write there: File exists; change --out"
    )
    assert taken.read_text() == "mine"


@needs_tff
def test_a_run_that_diverges_ends_with_the_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diverging = ["simulate", "--lr", "1e30", "--clients", "20", "--out", str(tmp_path)]
    told = "round 1: the training diverged: its loss is not finite; lower --lr"
    assert _line(diverging, 1, capsys) == told
    assert _line([*diverging, "--malicious", "0.1"], 1, capsys) == f"{told}, or take a robust --aggregator"
    assert not (tmp_path / "summary.json").exists()


@needs_tff
def test_demo_does_not_empty_a_folder_that_it_has_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "run" / "precious.csv"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert _line(["demo", "--out", str(tmp_path)], 2, capsys) == (
        f"{mine.parent}: not a demo's folder, so that it is not overwritten; change --out"
    )
    assert mine.read_text() == "mine"


def test_demo_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert _line(["demo", "--out", str(taken)], 2, capsys) == (
        f"{taken}: can't write there: Not a directory; change --out"
    )


@pytest.mark.parametrize(
    ("system", "machine", "message"),
    [
        (
            "Darwin",
            "arm64",
            "simulation needs TensorFlow Federated, which is available for Linux on x86-64 only, not for Darwin on"
            " arm64; export, parity, server and devices work here",
        ),
        (
            "Linux",
            "x86_64",
            "simulation needs TensorFlow Federated, which is not installed: run 'make setup'",
        ),
    ],
)
def test_simulate_without_tff(
    system: str,
    machine: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "platform", system.lower())
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert _line(["simulate", "--out", str(tmp_path / "run")], 2, capsys) == message
    assert _line(["worker"], 2, capsys) == message


def test_what_linux_alone_has_is_not_needed_to_say_so() -> None:
    """The message of `test_simulate_without_tff` comes after these imports."""
    script = "import os; del os.sched_getaffinity, os.memfd_create; import tff_sim.experiments.runner, cli.worker"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_export_of_an_unknown_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = _line(["export", "resnet", "--out", str(tmp_path)], 2, capsys)
    assert line == f"unknown model 'resnet'; {KNOWN_MODELS}"


def test_export_of_a_bundle_that_exists(digits_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    line = _line(["export", "digits_mlp", "--out", str(digits_bundle.path.parent)], 2, capsys)
    assert line.startswith(f"{digits_bundle.path}: exists already; ")


@pytest.mark.parametrize("command", ["parity", "inspect", "serve"])
def test_a_missing_bundle(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "nowhere.bundle"
    line = _line([command, str(missing)], 2, capsys)
    assert line == f"{missing}: no such bundle; make one with 'pocketfed export'"
    line = _line([command, str(tmp_path)], 2, capsys)
    assert line == f"{tmp_path}: expected a bundle, or a folder that holds exactly one; found none"


def test_a_damaged_bundle_is_an_integrity_error(digits_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = digits_copy / "train.tflite"
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"x")
    assert _line(["inspect", str(digits_copy)], 4, capsys).startswith(f"{artifact}: its SHA-256 is not the manifest's")


def test_parity_over_too_few_steps(digits_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    line = _line(["parity", str(digits_bundle.path), "--steps", "10"], 2, capsys)
    assert line == "parity: at least 60 steps are needed to show a drift, not 10"


def test_serve_with_an_unknown_codec(digits_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    line = _line(["serve", str(digits_bundle.path), "--codec", "zip"], 2, capsys)
    assert line.startswith("unknown codec 'zip'; known codecs: f32, ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--goal", "0"], "round: goal_count should be at least 1, not 0"),
        (["--minimum", "6"], "round: minimum_reports should be from 1 to the goal count, 5, not 6"),
        (["--over-selection", "0.5"], "round: over_selection should be from 1 to 100, not 0.5"),
        (["--retry-seconds", "0"], "task: retry_seconds should be above 0 seconds, not 0.0"),
        (["--keep-versions", "0"], "task: keep_versions should be at least 1, not 0"),
        (["--lr", "0"], "client work: learning_rate should be a finite number above 0, not 0.0"),
        (["--tls-cert", "cert.pem"], "TLS needs a certificate and its key: give both --tls-cert and --tls-key"),
        (
            ["--host", "0.0.0.0"],
            "0.0.0.0: secrets and updates would go over the network as they are; give --tls-cert and --tls-key, or"
            " --insecure where something in front of this server speaks TLS",
        ),
        (
            ["--host", "0.0.0.0", "--insecure", "--open-enrolment"],
            "0.0.0.0: with --open-enrolment everybody could take part; it is for 127.0.0.1 alone",
        ),
        (
            ["--trusted-proxy", "proxy.example"],
            "--trusted-proxy: 'proxy.example' is no address or network, such as 127.0.0.1 or 10.0.0.0/24",
        ),
        (["--keys", "nowhere"], "nowhere/operator.key: can't keep the operator's key there: No such file or directory"),
        (
            ["--db", "mysql://host/fleet"],
            "mysql: can't open the server's database: expected sqlite:///FILE or postgresql://…",
        ),
    ],
)
def test_serve(
    arguments: list[str],
    message: str,
    digits_bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _line(["serve", str(digits_bundle.path), "--port", "0", *arguments], 2, capsys) == message
    assert list(tmp_path.glob("*.db")) == []


def test_serve_on_a_port_in_use(digits_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        database = tmp_path / "server.db"
        arguments = ["--port", str(port), "--db", f"sqlite:///{database}", "--keys", str(tmp_path)]
        line = _line(["serve", str(digits_bundle.path), *arguments], 3, capsys)
    assert line == f"can't listen at 127.0.0.1:{port}: Address already in use; choose another --host or --port"
    assert not database.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["simulate", "--batch-size", "0"],
            "Invalid value for '--batch-size': '0' is not a whole number of at least 1, nor 'all'",
        ),
        (
            ["simulate", "--batch-size", "ten"],
            "Invalid value for '--batch-size': 'ten' is not a whole number of at least 1, nor 'all'",
        ),
        (
            ["simulate", "--batch-size", "²"],
            "Invalid value for '--batch-size': '²' is not a whole number of at least 1, nor 'all'",
        ),
        (
            ["parity", "nowhere", "--threads", "100000000000"],
            "Invalid value for '--threads': 100000000000 is not in the range 1<=x<=1024.",
        ),
        (
            ["simulate", "--worker-timeout", "0"],
            "Invalid value for '--worker-timeout': 0.0 is not in the range x>0.",
        ),
        (["worker", "--port", "65536"], "Invalid value for '--port': 65536 is not in the range 0<=x<=65535."),
        (["simulate", "--rounds", "many"], "Invalid value for '--rounds': 'many' is not a valid integer."),
        (["simulate", "--nesterov", "1"], "No such option '--nesterov'."),
        (
            ["export", "digits_mlp", "--out", "nowhere", "--seed", "-1"],
            "Invalid value for '--seed': -1 is not in the range 0<=x<=9007199254740991.",
        ),
        (
            ["parity", "nowhere", "--seed", "-1"],
            "Invalid value for '--seed': -1 is not in the range 0<=x<=9007199254740991.",
        ),
        (["demo", "--seed", "-1"], "Invalid value for '--seed': -1 is not in the range 0<=x<=9007199254740991."),
        (["export"], "Missing option '--out'."),
        (["fly"], "No such command 'fly'."),
    ],
)
def test_wrong_usage_is_shown_with_the_way_to_help(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    assert lines[0].startswith("Usage: pocketfed ")
    assert lines[-1] == f"Error: {message}"
    assert "Traceback" not in output.err


def test_a_batch_size_is_a_number_or_all() -> None:
    kind = BatchSize()
    assert (kind.convert("7", None, None), kind.convert("all", None, None), kind.convert(10, None, None)) == (
        7,
        None,
        10,
    )


def test_a_fault_of_the_program_is_not_taken_for_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def broken() -> None:
        raise KeyError("a fault")

    monkeypatch.setitem(app.commands, "broken", broken)
    with pytest.raises(KeyError, match="a fault"):
        main(["broken"])


def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def slow() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(app.commands, "slow", slow)
    assert main(["slow"]) == 130
    assert capsys.readouterr().err.strip() == "pocketfed: interrupted"


def test_a_termination_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def slow() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(app.commands, "slow", slow)
    assert main(["slow"]) == 143
    assert capsys.readouterr().err.strip() == "pocketfed: terminated"
    assert signal.getsignal(signal.SIGTERM) is before
