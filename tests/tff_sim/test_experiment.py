"""Whole experiments through the command line: what other programs rely on."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import models
from cli.main import main
from device_runtime.codec import encoded_size
from device_runtime.errors import InputError
from device_runtime.examples import Examples
from device_runtime.tensors import TensorSpec
from device_runtime.weights import dump_weights, read_weights
from tff_sim import Experiment, datasets, run_experiment
from tff_sim.experiments.data_settings import Data
from tff_sim.experiments.evaluation import Evaluator
from tff_sim.experiments.results import rounds_to_target

pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")

SPEC = models.get("digits_mlp")
SUMMARY = {
    "rounds", "rounds_to_target", "final_accuracy", "best_accuracy", "seconds_per_round_median", "upload_bytes",
    "download_bytes", "codec", "seed", "parameters",
}  # fmt: skip
COLUMNS = [
    "round", "seconds", "train_loss", "test_accuracy", "test_loss", "clients", "examples", "upload_bytes",
    "download_bytes",
    "available", "selected", "dropped_out", "late", "surplus", "corrupt", "malicious", "non_finite", "clipped",
    "zeroed", "no_step",
]  # fmt: skip


def _tensors() -> list[TensorSpec]:
    model = SPEC.build()
    names = models.tensor_names(model)
    return [TensorSpec(name, tuple(v.shape)) for name, v in zip(names, model.trainable_variables, strict=True)]


def _rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_run_in_json_and_its_files(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["--model", "digits_mlp", "--clients", "20", "--fraction", "0.1", "--rounds", "3", "--seed", "4"]
    run = subprocess.run(
        [sys.executable, "-m", "cli.main", "simulate", *arguments, "--json", "--out", str(out)],
        capture_output=True, stdin=subprocess.DEVNULL, text=True, timeout=600,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    summary = json.loads(run.stdout)  # nothing else is on standard output
    assert isinstance(summary, dict)
    assert [line.split()[:2] for line in run.stderr.splitlines()] == [["simulating", f"{n}/3"] for n in (1, 2, 3)]

    assert json.loads((out / "summary.json").read_text()) == summary
    assert set(summary) >= SUMMARY
    assert (summary["rounds"], summary["rounds_to_target"]) == (3, None)
    assert (summary["codec"], summary["seed"], summary["parameters"]) == ("f32", 4, 4810)

    rows = _rows(out)
    assert list(rows[0]) == COLUMNS
    assert [row["round"] for row in rows] == ["1", "2", "3"]
    assert [row["clients"] for row in rows] == ["2", "2", "2"]
    assert [(row["available"], row["selected"]) for row in rows] == [("20", "2")] * 3
    assert {row[name] for row in rows for name in COLUMNS[11:]} == {"0"}
    assert all(143 <= int(row["examples"]) <= 144 for row in rows)  # 1,437 dealt to 20, and two of them
    accuracies = [float(row["test_accuracy"]) for row in rows]
    assert summary["final_accuracy"] == accuracies[-1]
    assert summary["best_accuracy"] == max(accuracies)
    assert accuracies[-1] > summary["initial_accuracy"] + 0.2  # it learns
    tensors = _tensors()
    weights = read_weights(out / "weights.safetensors", tensors)
    assert summary["upload_bytes"] == 6 * encoded_size(tensors, "f32", ["loss"])
    assert summary["download_bytes"] == 6 * len(dump_weights(weights, tensors))

    # The weights in the file are those whose accuracy is told.
    test = Evaluator(SPEC, datasets.load("digits").test)(weights)
    assert test.accuracy == pytest.approx(summary["final_accuracy"])
    assert test.loss == pytest.approx(float(rows[-1]["test_loss"]), rel=1e-5)
    for name in ("accuracy.png", "rounds.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert sorted(path.name for path in out.iterdir()) == [
        "accuracy.png", "checkpoint.zip", "experiment.toml", "metrics.csv", "rounds.png", "summary.json", "tensorboard",
        "weights.safetensors",
    ]  # fmt: skip


def test_a_run_stops_at_its_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = ["--clients", "10", "--fraction", "0.2", "--rounds", "50", "--target-accuracy", "0.5", "--lr", "0.2"]
    assert main(["simulate", *arguments, "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    accuracies = [float(row["test_accuracy"]) for row in _rows(out)]
    assert summary["rounds"] == len(accuracies) < 50
    assert accuracies[-1] >= 0.5
    assert all(accuracy < 0.5 for accuracy in accuracies[:-1])
    reached = summary["rounds_to_target"]
    assert reached == rounds_to_target(summary["initial_accuracy"], accuracies, 0.5)
    assert len(accuracies) - 1 < reached <= len(accuracies)

    first, last = capsys.readouterr().out.splitlines()
    assert first == f"50.0% reached in round {len(accuracies)} (interpolated: {reached:.1f})"
    assert last.startswith(f"test accuracy {accuracies[-1]:.2%} (best {max(accuracies):.2%}) after {len(accuracies)} ")
    assert last.endswith(f"results in {out}")
    # Another target is looked for in the rounds that there are.
    assert main(["simulate", *arguments, "--target-accuracy", "0.2", "--resume", "--out", str(out)]) == 0
    earlier = 1 + next(index for index, accuracy in enumerate(accuracies) if accuracy >= 0.2)
    assert earlier < len(accuracies)
    assert capsys.readouterr().out.startswith(f"20.0% reached in round {earlier} (interpolated: ")


def test_the_clients_optimiser_is_chosen_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--clients", "10", "--fraction", "0.3", "--rounds", "2", "--lr", "0.01", "--out"]
    losses = {}
    for name, options in {"sgd": [], "adam": ["--optimizer", "adam", "--clip-norm", "1"]}.items():
        assert main(["simulate", *options, *arguments, str(tmp_path / name)]) == 0
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["optimizer"]["name"] == name
        losses[name] = float(_rows(tmp_path / name)[-1]["train_loss"])
    assert losses["adam"] < losses["sgd"] - 0.1  # at so small a rate SGD has hardly moved
    assert main(["simulate", "--momentum", "2", "--out", str(tmp_path / "none")]) == 2
    assert "momentum should be a number of at least 0 and below 1, not 2.0" in capsys.readouterr().err


def test_a_run_is_repeated_from_its_file(tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    options = ["--partition", "dirichlet", "--alpha", "0.5", "--clients", "10", "--fraction", "0.3", "--rounds", "2"]
    more = ["--seed", "5", "--batch-size", "all", "--server-optimizer", "momentum", "--lr-schedule", "cosine"]
    world = [
        "--drop-out",
        "0.2",
        "--over-selection",
        "1.5",
        "--malicious",
        "0.3",
        "--clip-update",
        "1",
        "--codec",
        "q4",
    ]
    assert main(["simulate", *options, *more, *world, "--out", str(first)]) == 0
    assert main(["simulate", "--config", str(first / "experiment.toml"), "--out", str(again)]) == 0
    assert (first / "weights.safetensors").read_bytes() == (again / "weights.safetensors").read_bytes()
    assert (first / "experiment.toml").read_bytes() == (again / "experiment.toml").read_bytes()
    rows, repeated = ([{**row, "seconds": ""} for row in _rows(out)] for out in (first, again))
    assert rows == repeated
    summary = json.loads((first / "summary.json").read_text())
    assert (summary["partition"], summary["codec"], summary["clients"]) == ("dirichlet", "q4", 10)
    assert summary["experiment"]["world"]["drop_out"] == 0.2
    for row in rows:
        counts = {name: int(row[name]) for name in COLUMNS if name not in COLUMNS[1:5] and row[name]}
        assert counts["selected"] == 5  # 1.5 times 3
        sent = counts["selected"] - counts["dropped_out"]
        assert sent == counts["clients"] + counts["surplus"]
        assert counts["upload_bytes"] == sent * encoded_size(_tensors(), "q4", ["loss"])


def test_updates_that_are_corrupt_are_counted_and_do_no_harm(tmp_path: Path) -> None:
    arguments = ["--clients", "20", "--fraction", "0.5", "--rounds", "3", "--lr", "0.3", "--corrupt", "0.3"]
    assert main(["simulate", *arguments, "--out", str(tmp_path)]) == 0
    rows = _rows(tmp_path)
    corrupt = [int(row["corrupt"]) for row in rows]
    assert sum(corrupt) > 0
    assert corrupt == [int(row["non_finite"]) for row in rows]
    assert [int(row["clients"]) + int(row["non_finite"]) for row in rows] == [10, 10, 10]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["counts"]["corrupt"] == sum(corrupt)
    assert summary["final_accuracy"] > summary["initial_accuracy"] + 0.2


def test_a_population_on_disk_has_a_world_too(tmp_path: Path) -> None:
    population = tmp_path / "population"
    deal = ["data", "export", "--partition", "dirichlet", "--alpha", "0.2", "--clients", "200", "--packed"]
    assert main([*deal, "--out", str(population)]) == 0
    arguments = ["--dataset", "packed", "--data-dir", str(population), "--fraction", "0.05", "--rounds", "3"]
    world = ["--availability", "0.3", "--deadline", "0.1", "--over-selection", "1.5", "--aggregator", "median"]
    out = tmp_path / "run"
    assert main(["simulate", *arguments, *world, "--out", str(out)]) == 0
    for row in _rows(out):
        assert 20 < int(row["available"]) < 120
        assert int(row["selected"]) == 15
        assert int(row["late"]) > 0
        assert int(row["clients"]) == min(10, 15 - int(row["late"]))
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["clients"], summary["partition"]) == (200, None)
    assert summary["algorithm"]["aggregator"] == "median"


def test_rounds_in_which_nobody_reports_leave_the_model_as_it_is(tmp_path: Path) -> None:
    arguments = ["--clients", "10", "--fraction", "0.2", "--rounds", "2", "--drop-out", "1", "--out", str(tmp_path)]
    assert main(["simulate", *arguments]) == 0
    rows = _rows(tmp_path)
    assert [(row["clients"], row["train_loss"], row["dropped_out"]) for row in rows] == [("0", "nan", "2")] * 2
    assert [row["upload_bytes"] for row in rows] == ["0", "0"]
    weights = read_weights(tmp_path / "weights.safetensors", _tensors())
    assert all(np.array_equal(one, other) for one, other in zip(weights, models.initial_weights(SPEC, 0), strict=True))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["empty_rounds"], summary["final_accuracy"]) == (2, summary["initial_accuracy"])


def test_the_device_s_engine_trains_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["simulate", "--clients", "10", "--fraction", "0.3", "--rounds", "2", "--lr", "0.2"]
    weights = {}
    for engine in ("tff", "device"):
        assert main([*arguments, "--engine", engine, "--out", str(tmp_path / engine)]) == 0
        weights[engine] = read_weights(tmp_path / engine / "weights.safetensors", _tensors())
    for one, other in zip(weights["tff"], weights["device"], strict=True):
        assert np.abs(one - other).max() <= 1e-4 * np.abs(one).max()
    capsys.readouterr()
    assert main([*arguments, "--engine", "device", "--workers", "127.0.0.1:1", "--out", str(tmp_path / "no")]) == 2
    assert capsys.readouterr().err == (
        "pocketfed: --engine device trains on this machine, with the exported model: leave out --workers\n"
    )


def test_a_target_that_is_not_reached_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--clients", "10", "--fraction", "0", "--rounds", "1", "--target-accuracy", "1"]
    assert main(["simulate", *arguments, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("100.0% was not reached in 1 rounds\ntest accuracy ")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["rounds"], summary["rounds_to_target"]) == (1, None)


@pytest.mark.data
def test_the_2nn_reaches_95_percent_of_mnist(data_dir: Path, tmp_path: Path) -> None:
    """McMahan et al. 2017, Table 1: IID, E = 1, B = 10, C = 0.1; 97 % took them 87 rounds at their best rate."""
    arguments = [
        *("--model", "mnist_2nn", "--dataset", "mnist", "--data-dir", str(data_dir / "mnist"), "--partition", "iid"),
        *("--epochs", "1", "--batch-size", "10", "--lr", "0.1", "--fraction", "0.1"),
        *("--target-accuracy", "0.95", "--rounds", "100", "--out", str(tmp_path)),
    ]
    assert main(["simulate", *arguments]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["final_accuracy"] >= 0.95
    assert 5 < summary["rounds_to_target"] < 25


def test_evaluation_goes_over_all_batches_of_the_test_set() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((1100, 8, 8, 1), np.float32)  # two batches of 500, and one of 100
    weights = models.initial_weights(SPEC, 0)
    model = models.seeded_model(SPEC, 0)
    y = model(x).numpy().argmax(axis=1).astype(np.int32)
    y[-50:] = (y[-50:] + 1) % 10
    result = Evaluator(SPEC, Examples(x, y))(weights)
    assert result.accuracy == pytest.approx(1050 / 1100)
    with pytest.raises(InputError, match=r"can't evaluate the test examples \(.* label value of 10 .*\); do they fit"):
        Evaluator(SPEC, Examples(x, y * 0 + 10))(weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fraction": -0.1}, "--fraction should be from 0 to 1, not -0.1"),
        ({"fraction": 1.5}, "--fraction should be from 0 to 1, not 1.5"),
        ({"fraction": float("nan")}, "--fraction should be from 0 to 1, not nan"),
        ({"rounds": 0}, "--rounds should be at least 1, not 0"),
        ({"target_accuracy": 0.0}, "--target-accuracy should be above 0 and at most 1, not 0.0"),
        ({"target_accuracy": 97.0}, "--target-accuracy should be above 0 and at most 1, not 97.0"),
        ({"target_accuracy": float("nan")}, "--target-accuracy should be above 0 and at most 1, not nan"),
    ],
)
def test_numbers_out_of_range_are_named(changes: dict[str, float], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Experiment(**changes)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_a_script_names_its_folder_by_a_text_and_needs_an_export_for_the_device_s_engine(tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    summary = run_experiment(Experiment(rounds=1, data=Data(clients=20)), folder)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    with pytest.raises(InputError) as caught:
        run_experiment(Experiment(rounds=1, engine="device"), folder)
    assert str(caught.value) == (
        "engine 'device' needs make_bundle, which exports the model: take"
        " lambda spec, folder, seed: export.bundle_writer.export_bundle(spec, folder, seed=seed).path"
    )
