"""A run that is killed goes on as if nothing had happened; a folder with hours of work in it is not written over."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")

# With a state of the server's optimiser, a schedule, and rounds in which nobody reports.
EXPERIMENT = """
rounds = 8
seed = 3
[data]
clients = 20
present = 0.5
added = 0.1
[work]
learning_rate = 0.2
[schedule]
name = "exponential"
decay = 0.9
[algorithm.optimizer]
name = "fedadam"
[world]
drop_out = 0.5
"""
# In one process each: as its first checkpoint is half written, in the middle of round 3, before its fifth file is
# renamed, which is its second checkpoint, and between round 6's row and its checkpoint.
INSTANTS = ["fsync:3", "round:3", "replace:5", "metrics:6"]


def _rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as stream:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(stream)]


def _summary(out: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return {key: value for key, value in summary.items() if not key.startswith("seconds")}


def _run(*arguments: str | Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.tff_sim.killed_runs", *map(str, arguments)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=900,
        env={**os.environ, "PYTHONWARNINGS": "ignore"}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_a_run_killed_at_any_instant_ends_as_one_that_was_not(tmp_path: Path) -> None:
    import tensorflow as tf

    experiment = tmp_path / "experiment.toml"
    experiment.write_text(EXPERIMENT)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    _run(experiment, killed, whole, *INSTANTS)
    assert (killed / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert _rows(killed) == _rows(whole)
    assert _summary(killed) == _summary(whole)
    assert (killed / "experiment.toml").read_bytes() == (whole / "experiment.toml").read_bytes()
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in whole.iterdir())
    # It was a run worth the test: somebody reported in some rounds, and in others nobody.
    clients = [int(row["clients"]) for row in _rows(whole)]
    assert len(clients) == 8
    assert 0 in clients
    assert _summary(whole)["empty_rounds"] == clients.count(0)
    for before, after in zip(_rows(whole), _rows(whole)[1:], strict=False):
        if after["clients"] == "0":
            assert (after["test_loss"], after["train_loss"]) == (before["test_loss"], "nan")
    # Each round is in TensorBoard's events once.
    (events,) = (killed / "tensorboard").iterdir()
    steps = [
        event.step
        for event in tf.compat.v1.train.summary_iterator(str(events))
        for value in event.summary.value
        if value.tag == "test/accuracy"
    ]
    assert steps == list(range(1, 9))


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of two rounds that passes for one that was broken off: it has no summary."""
    out = tmp_path_factory.mktemp("broken") / "run"
    assert main(["simulate", "--clients", "10", "--rounds", "2", "--out", str(out)]) == 0
    (out / "summary.json").unlink()
    yield out


def _line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["simulate", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("pocketfed: ")


def test_a_run_that_was_broken_off_is_not_replaced(broken_off: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {path.name: path.read_bytes() for path in broken_off.iterdir() if path.is_file()}
    assert _line(["--clients", "10", "--rounds", "3", "--out", str(broken_off)], capsys) == (
        f"{broken_off}: holds a run that was broken off after round 2 of 2: go on with it by --resume, replace it by"
        " --overwrite, or choose another --out"
    )
    assert {path.name: path.read_bytes() for path in broken_off.iterdir() if path.is_file()} == content


def test_another_experiment_does_not_go_on_there(broken_off: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--resume", "--clients", "20", "--rounds", "3", "--lr", "0.5", "--out", str(broken_off)]
    assert _line(arguments, capsys) == (
        f"{broken_off}: holds another experiment: data.clients is 10 there, and 20 here; work.learning_rate is 0.1"
        " there, and 0.5 here; choose another --out, or remove this one"
    )


@pytest.mark.parametrize("changed", ["examples", "hands", "test examples"])
def test_a_run_does_not_go_on_with_other_data(changed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file of a partition and the folder of the data keep their names, whatever is in them."""
    folder, hands, out = tmp_path / "data", tmp_path / "hands.npz", tmp_path / "run"
    partition = ["data", "partition", "--dataset", "npz", "--data-dir", str(folder), "--clients", "6"]
    assert main(["data", "export", "--clients", "4", "--out", str(folder)]) == 0
    assert main([*partition, "--partition", "iid", "--out", str(hands)]) == 0
    arguments = ["--dataset", "npz", "--data-dir", str(folder), "--partition-file", str(hands), "--out", str(out)]
    assert main(["simulate", *arguments, "--rounds", "1"]) == 0
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    arguments[3] = str(moved)
    hands = hands.rename(tmp_path / "moved.npz")
    arguments[5] = str(hands)
    assert main(["simulate", *arguments, "--rounds", "2", "--resume"]) == 0  # the same, in other places
    name = "_test.npz" if changed == "test examples" else "client-002.npz"
    with np.load(moved / name) as whole:
        x, y = whole["x"], whole["y"]
    if changed != "hands":
        np.savez(moved / name, x=x, y=y[::-1])
    partition[5] = str(moved)
    assert main([*partition, "--partition", "iid", "--seed", str(int(changed == "hands")), "--out", str(hands)]) == 0
    content = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    capsys.readouterr()
    assert _line([*arguments, "--rounds", "3", "--resume"], capsys) == (
        f"{out}: its run had other examples, or other clients had them, than those of here (their SHA-256 differs):"
        " give it its own, choose another --out, or remove this one"
    )
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == content


def test_a_run_does_not_go_on_with_another_packed_population(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two populations of the same clients, numbers and test examples; the pixels of one's training differ."""
    files, packed, other, out = (tmp_path / name for name in ("files", "packed", "other", "run"))
    assert main(["data", "export", "--clients", "4", "--out", str(files)]) == 0
    pack = ["data", "export", "--dataset", "npz", "--data-dir", str(files), "--packed", "--out"]
    assert main([*pack, str(packed)]) == 0
    with np.load(files / "client-002.npz") as whole:
        x, y = whole["x"], whole["y"]
    np.savez(files / "client-002.npz", x=x[::-1], y=y)
    assert main([*pack, str(other)]) == 0
    arguments = ["--dataset", "packed", "--out", str(out), "--data-dir"]
    assert main(["simulate", *arguments, str(packed), "--rounds", "1"]) == 0
    capsys.readouterr()
    assert _line([*arguments, str(other), "--rounds", "2", "--resume"], capsys) == (
        f"{out}: its run had other examples, or other clients had them, than those of here (their SHA-256 differs):"
        " give it its own, choose another --out, or remove this one"
    )
    assert main(["simulate", *arguments, str(packed), "--rounds", "2", "--resume"]) == 0


def test_a_run_goes_on_for_more_rounds_ends_there_and_is_replaced(
    broken_off: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resume = ["simulate", "--config", str(broken_off / "experiment.toml"), "--resume", "--out", str(broken_off)]
    assert main([*resume, "--rounds", "3"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["3/3"]
    straight = tmp_path / "straight"
    assert main(["simulate", "--clients", "10", "--rounds", "3", "--out", str(straight)]) == 0
    assert _rows(broken_off) == _rows(straight)
    assert (broken_off / "weights.safetensors").read_bytes() == (straight / "weights.safetensors").read_bytes()
    # There is nothing more to do: the summary is told again, and nothing is written.
    capsys.readouterr()
    written = (straight / "summary.json").stat().st_mtime_ns
    repeat = ["simulate", "--config", str(straight / "experiment.toml"), "--out", str(straight)]
    assert main([*repeat, "--resume", "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == json.loads((straight / "summary.json").read_text())
    assert output.err == ""
    assert (straight / "summary.json").stat().st_mtime_ns == written
    # Another target is looked for in the rounds that there are.
    target = str(float(_rows(straight)[1]["test_accuracy"]))
    assert main([*repeat, "--resume", "--target-accuracy", target]) == 0
    assert _summary(straight)["rounds_to_target"] == pytest.approx(2.0)
    assert len(_rows(straight)) == 3
    # Without its checkpoint it can't go on; a finished run is replaced without being asked for.
    (straight / "checkpoint.zip").unlink()
    assert _line([*repeat[1:], "--resume"], capsys) == (
        f"{straight}: its run is finished, and has no checkpoint.zip to go on with; change --out"
    )
    assert main([*repeat, "--rounds", "1"]) == 0
    assert len(_rows(straight)) == 1


def test_a_cosine_goes_on_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = ["--clients", "10", "--lr-schedule", "cosine", "--out", str(out)]
    assert main(["simulate", *arguments, "--rounds", "2"]) == 0
    capsys.readouterr()
    assert _line([*arguments, "--rounds", "3", "--resume"], capsys) == (
        f"{out}: holds another experiment: schedule.rounds is 2 there, and 3 here; --lr-rounds 2 goes on with"
        " it as it was"
    )
    assert main(["simulate", *arguments, "--rounds", "3", "--resume", "--lr-rounds", "2"]) == 0
    assert len(_rows(out)) == 3


@pytest.mark.parametrize("engine", ["tff", "device"])
def test_a_termination_leaves_nothing_behind_but_the_run(engine: str, tmp_path: Path) -> None:
    """As `timeout` and systemd end a program: temporary files go, and the run goes on later."""
    temporary, out = tmp_path / "temporary", tmp_path / "run"
    temporary.mkdir()
    program = [sys.executable, "-m", "cli.main", "simulate", "--engine", engine, "--clients", "10", "--out", str(out)]
    with subprocess.Popen(
        [*program, "--rounds", "100000"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "TMPDIR": str(temporary)}, cwd=Path(__file__).parents[2],
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if line.split()[1:2] == ["3/100000"]:
                    break
            assert list(temporary.glob("pocketfed-*"))
            process.terminate()
            *_, last = process.stderr
            assert (process.wait(120), last) == (143, "pocketfed: terminated\n")
        finally:
            process.kill()  # it would run for an hour
    assert list(temporary.glob("pocketfed-*")) == []  # TensorFlow has a cache of its own there
    done = len(_rows(out))
    assert done >= 3
    assert main([*program[3:], "--rounds", str(done + 1), "--resume"]) == 0
    assert len(_rows(out)) == done + 1


def test_resume_and_overwrite_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--resume", "--overwrite", "--out", str(tmp_path)]) == 2
    assert "--resume goes on with what is there, --overwrite replaces it: give one of them" in capsys.readouterr().err


def test_a_folder_in_use_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tff_sim.experiments.run_folder import RunFolder

    with RunFolder(tmp_path).working():
        assert _line(["--rounds", "1", "--out", str(tmp_path)], capsys) == (
            f"{tmp_path}: another process simulates into it; wait for it, or change --out"
        )
    assert list(tmp_path.iterdir()) == []
