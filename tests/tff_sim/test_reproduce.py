"""The paper's rows as they are in the paper, and what is written beside them."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli import reproduce as command
from cli.main import main
from device_runtime.errors import InputError
from device_runtime.work import ClientWork
from tff_sim.experiments.data_settings import Data
from tff_sim.experiments.experiment import Experiment
from tff_sim.experiments.file import load_experiment
from tff_sim.experiments.reproduce import FIGURES, TABLES, chosen_rows, write_figure, write_report
from tff_sim.experiments.reproduce.report import best_so_far
from tff_sim.experiments.reproduce.rows import Row

pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")


def test_the_rows_are_the_paper_s() -> None:
    """A sample of McMahan et al. 2017, Tables 1 to 3, read off there: rounds, E, B, C, partition."""
    row = TABLES["table1"]["2nn-iid-b10-c0.1"]
    assert (row.published, row.baseline) == ({0.97: 87}, "2nn-iid-b10-c0.0")
    work = row.experiment.work
    assert (row.experiment.model, work.epochs, work.batch_size, row.experiment.fraction) == ("mnist_2nn", 1, 10, 0.1)
    assert (row.experiment.rounds, row.experiment.target_accuracy) == (131, 0.97)
    row = TABLES["table1"]["cnn-noniid-binf-c1.0"]
    assert row.published == {0.99: None}
    assert (row.experiment.work.epochs, row.experiment.work.batch_size) == (5, None)
    assert row.experiment.data.partition == "shards"
    row = TABLES["table2"]["cnn-noniid-e20-b10"]
    assert (row.published, row.baseline, row.experiment.work.epochs) == ({0.99: 173}, "cnn-noniid-fedsgd", 20)
    row = TABLES["table2"]["shakespeare-role-e5-b10"]
    assert (row.published, row.experiment.data.partition) == ({0.54: 41}, "natural")
    fedsgd = TABLES["table2"]["shakespeare-iid-fedsgd"]
    assert (fedsgd.published, fedsgd.experiment.work.batch_size, fedsgd.baseline) == ({0.54: 2488}, None, None)
    row = TABLES["table3"]["cifar-e5-b50"]
    assert row.published == {0.8: 280, 0.82: 630, 0.85: 2000}
    assert row.experiment.target_accuracy == 0.85
    sgd = TABLES["table3"]["cifar-sgd"]
    assert (sgd.updates, sgd.experiment.data.clients, sgd.experiment.work.batch_size) == (500, 1, 100)
    assert {name: len(rows) for name, rows in TABLES.items()} == {"table1": 40, "table2": 30, "table3": 3, "codecs": 5}
    # Speed-ups as the paper prints them follow from its rounds.
    for table, name, printed in [
        ("table1", "2nn-iid-b10-c0.1", 3.6), ("table1", "cnn-noniid-b10-c1.0", 9.9), ("table2", "cnn-iid-e5-b10", 31.3),
        ("table2", "shakespeare-role-e5-b10", 95.3),
    ]:  # fmt: skip
        row = TABLES[table][name]
        assert row.baseline is not None
        ((target, rounds),) = row.published.items()
        baseline = TABLES[table][row.baseline].published[target]
        assert baseline is not None
        assert rounds is not None
        assert baseline / rounds == pytest.approx(printed, abs=0.051)


def test_every_row_and_figure_can_be_run() -> None:
    for table in TABLES.values():
        for row in table.values():
            assert row.baseline is None or row.baseline in table
            assert row.baseline is None or set(table[row.baseline].published) == set(row.published)
            row.experiment.data.spec(0)
    for table_name, rows in FIGURES.values():
        assert set(rows) <= set(TABLES[table_name])
    assert (*TABLES, "figures") == command.TABLES


def test_rows_are_chosen_by_pattern() -> None:
    assert [row.name for row in chosen_rows("codecs", [])] == ["f32", "q8", "q4", "q2", "q1"]
    assert [row.name for row in chosen_rows("codecs", ["q[24]", "f32"])] == ["f32", "q4", "q2"]
    with pytest.raises(InputError) as caught:
        chosen_rows("codecs", ["f32", "zip"])
    assert str(caught.value) == "codecs has no row 'zip'; it has f32, q8, q4, q2, q1"


def _finished(folder: Path, accuracies: list[float], rate: float = 0.1, target: float | None = None) -> None:
    folder.mkdir(parents=True)
    summary = {
        "initial_accuracy": accuracies[0], "best_accuracy": max(accuracies), "rounds": len(accuracies) - 1,
        "learning_rate": rate, "seed": 0, "upload_bytes": 1000, "target_accuracy": target,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = [f"{number},{accuracy}" for number, accuracy in enumerate(accuracies[1:], start=1)]
    (folder / "metrics.csv").write_text("round,test_accuracy\n" + "\n".join(lines) + "\n")


def test_measured_stands_next_to_published(tmp_path: Path) -> None:
    """Rounds are the paper's: of the monotone curve, interpolated; a swept row is its best rate's."""
    _finished(tmp_path / "table2" / "cnn-iid-fedsgd", [0.1, 0.5, 0.4, 0.9, 1.0])
    best = tmp_path / "table2" / "cnn-iid-e5-b10"
    _finished(best, [0.1, 0.2, 1.0], 0.1)  # before the sweep
    _finished(best / "lr-0.2154", [0.1, 0.98, 1.0], 0.2154)
    (best / "sweep.json").write_text(json.dumps({"best": {"learning_rate": 0.2154}}))
    _finished(tmp_path / "table2" / "cnn-iid-e1-b10", [0.1, 0.2])
    entries = {entry.row: entry for entry in write_report("table2", tmp_path)}
    assert list(entries) == ["cnn-iid-fedsgd", "cnn-iid-e1-b10", "cnn-iid-e5-b10"]
    swept, base, missed = entries["cnn-iid-e5-b10"], entries["cnn-iid-fedsgd"], entries["cnn-iid-e1-b10"]
    assert base.measured == pytest.approx(3.9)
    assert swept.measured == pytest.approx(1.5)
    assert swept.published == 20
    assert swept.published_speedup == pytest.approx(31.3)
    assert swept.measured_speedup == pytest.approx(2.6)
    assert (missed.measured, missed.measured_speedup, missed.rounds) == (None, None, 1)
    text = (tmp_path / "table2.md").read_text().splitlines()
    assert text[4] == (
        "| `cnn-iid-e5-b10` | CNN, IID, FedAvg, E=5, B=10 | 99% | 20 | 1.5 | 31.3× | 2.6× | 100.00% | 0.2154 |"
    )
    assert "| 34 | not in 1 | 18.4× | — |" in text[3]
    read: list[dict[str, Any]] = json.loads((tmp_path / "table2.json").read_text())
    assert [entry["row"] for entry in read] == list(entries)
    with (tmp_path / "table2.csv").open(newline="") as stream:
        assert [row["published"] for row in csv.DictReader(stream)] == ["626", "34", "20"]
    assert (tmp_path / "table2.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert write_figure("cnn-iid", *FIGURES["cnn-iid"], tmp_path) == tmp_path / "figures" / "cnn-iid.png"
    assert write_figure("cifar", *FIGURES["cifar"], tmp_path) is None
    assert best_so_far([0.1, 0.5, 0.4]) == [0.1, 0.5, 0.5]


def test_a_target_that_can_be_afforded_is_compared_too(tmp_path: Path) -> None:
    """FedSGD was run to 95 % alone: its ratio to FedAvg is told there, from FedAvg's own curve."""
    base, fast = tmp_path / "table2" / "cnn-iid-fedsgd", tmp_path / "table2" / "cnn-iid-e5-b10"
    _finished(base, [0.1, 0.75, 0.85, 0.95], target=0.95)
    _finished(fast, [0.1, 0.95, 0.99], target=0.99)
    entries = {(entry.row, entry.target): entry for entry in write_report("table2", tmp_path)}
    assert list(entries) == [
        ("cnn-iid-fedsgd", 0.95), ("cnn-iid-fedsgd", 0.99), ("cnn-iid-e5-b10", 0.95), ("cnn-iid-e5-b10", 0.99),
    ]  # fmt: skip
    assert entries["cnn-iid-fedsgd", 0.95].measured == pytest.approx(3.0)
    assert entries["cnn-iid-fedsgd", 0.99].measured is None
    ratio = entries["cnn-iid-e5-b10", 0.95]
    assert (ratio.published, ratio.published_speedup) == (None, None)
    assert ratio.measured_speedup == pytest.approx(3.0)
    assert entries["cnn-iid-e5-b10", 0.99].measured_speedup is None


def test_rounds_of_sgd_are_updates(tmp_path: Path) -> None:
    _finished(tmp_path / "table3" / "cifar-sgd", [0.1, 0.7, 0.9])
    entries = {entry.target: entry for entry in write_report("table3", tmp_path)}
    assert {target: entry.measured for target, entry in entries.items()} == {
        0.8: pytest.approx(750), 0.82: pytest.approx(800), 0.85: pytest.approx(875),
    }  # fmt: skip
    assert all(entry.published_speedup is None for entry in entries.values())


def test_a_damaged_run_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "codecs" / "f32"
    _finished(folder, [0.1, 0.2])
    (folder / "metrics.csv").write_text("round\n1\n")
    with pytest.raises(InputError, match=rf"^{folder}: the files of its run are damaged: KeyError"):
        write_report("codecs", tmp_path)
    (folder / "metrics.csv").unlink()
    with pytest.raises(InputError, match=rf"^{folder}: no finished run there: No such file or directory$"):
        write_report("codecs", tmp_path)
    (folder / "summary.json").unlink()
    (folder / "sweep.json").write_text("[]")
    with pytest.raises(InputError, match=rf"^{folder / 'sweep.json'}: not a sweep's file: TypeError"):
        write_report("codecs", tmp_path)


def test_the_rows_are_listed_and_wrong_ones_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "table3", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split("  ")[0] == "cifar-fedsgd"
    assert lines[1].endswith("80% in 3750, 82% in 6600, 85% in —")
    assert main(["reproduce", "figures", "--list", "--row", "cifar", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["row"] for row in listed["table3"]] == ["cifar-fedsgd", "cifar-e5-b50"]
    assert main(["reproduce", "figures", "--row", "fig9"]) == 2
    assert capsys.readouterr().err == (f"pocketfed: figures has no row 'fig9'; it has {', '.join(FIGURES)}\n")
    assert main(["reproduce", "codecs", "--row", "zip"]) == 2
    assert capsys.readouterr().err == "pocketfed: codecs has no row 'zip'; it has f32, q8, q4, q2, q1\n"
    assert main(["reproduce", "codecs", "--row", "q8"]) == 2
    missing = "--data-dir is missing; it names the folder that holds mnist/"
    assert capsys.readouterr().err == f"pocketfed: {missing}\n"
    assert main(["reproduce", "codecs", "--row", "q8", "--data-dir", str(tmp_path)]) == 2
    wrong = f"{tmp_path / 'mnist'}: no such folder; --data-dir should hold mnist/"
    assert capsys.readouterr().err == f"pocketfed: {wrong}\n"
    assert main(["reproduce", "codecs", "--sweep", "--lr", "0.1"]) == 2
    assert "--sweep searches the learning rate, --lr gives it" in capsys.readouterr().err


def test_a_sweep_that_diverges_at_each_rate_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "digits").mkdir()
    rng = np.random.default_rng(0)
    x, y = rng.random((20, 8, 8, 1), np.float32), rng.integers(0, 10, 20, np.int32)
    for name in ("a", "_test"):
        np.savez(tmp_path / "digits" / f"{name}.npz", x=x, y=y)
    data, work = Data(dataset="npz", partition="natural"), ClientWork(learning_rate=1e30)
    row = Row("q8", "digits", "digits", Experiment(rounds=2, data=data, work=work), {0.97: None}, None)
    monkeypatch.setattr("tff_sim.experiments.reproduce.chosen_rows", lambda table, rows: [row])
    arguments = ["reproduce", "codecs", "--row", "q8", "--data-dir", str(tmp_path), "--out", str(tmp_path / "runs")]
    assert main([*arguments, "--sweep"]) == 1
    output = capsys.readouterr()
    assert output.out.count("diverged") == 5
    assert output.err.splitlines()[-2:] == [
        "q8: the training diverged at each rate from 2.154e+29 to 4.642e+30",
        "pocketfed: the training diverged in q8: give a lower --lr",
    ]


@pytest.mark.data
def test_a_row_is_run_goes_on_and_is_reported(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["reproduce", "codecs", "--row", "q4", "--data-dir", str(data_dir), "--out", str(tmp_path)]
    assert main([*arguments, "--rounds", "2"]) == 0
    output = capsys.readouterr()
    assert "q4: 2NN, IID, E=1, B=10, C=0.1, q4" in output.err
    assert output.out.splitlines()[-1] == str(tmp_path / "codecs.md")
    run = tmp_path / "codecs" / "q4"
    experiment = load_experiment(run / "experiment.toml", {})
    assert (experiment.work.codec, experiment.rounds) == ("q4", 2)
    assert main([*arguments, "--rounds", "3", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["codecs"]
    assert entry["rounds"] == 3
    # A row that diverges is told of, and the others are run and reported all the same.
    assert main([*arguments, "--row", "q8", "--lr", "1e30", "--rounds", "3", "--out", str(tmp_path / "other")]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert [line for line in errors if line.startswith("q4: round 1")]
    assert errors[-1] == "pocketfed: the training diverged in q8, q4: give a lower --lr, or --sweep"
    assert math.isclose(entry["best_accuracy"], json.loads((run / "summary.json").read_text())["best_accuracy"])
