"""The grid of learning rates, the paper's rule for the best, and a sweep that goes on where it was."""

from __future__ import annotations

import csv
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.main import main
from device_runtime.errors import CheckFailedError, InputError
from device_runtime.work import ClientWork
from tff_sim.errors import DivergedError
from tff_sim.experiments.experiment import Experiment
from tff_sim.experiments.sweep import RESOLUTIONS, Outcome, best_of, learning_rates, run_sweep

pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")

EXPERIMENT = Experiment(rounds=20, target_accuracy=0.9)


def test_a_grid_is_of_powers_both_bounds_included() -> None:
    assert learning_rates(0.01, 1.0, 3) == (0.01, 0.02154, 0.04642, 0.1, 0.2154, 0.4642, 1.0)
    assert learning_rates(0.1, 0.3162, 6) == (0.1, 0.1468, 0.2154, 0.3162)
    assert learning_rates(0.2154, 0.2154, 3) == (0.2154,)
    assert learning_rates(0.15, 0.3, 3) == (0.2154,)


@given(lowest=st.floats(1e-4, 10), factor=st.floats(3, 1000), per_decade=st.sampled_from(RESOLUTIONS))
def test_rates_lie_in_their_bounds_a_constant_factor_apart(lowest: float, factor: float, per_decade: int) -> None:
    rates = learning_rates(lowest, lowest * factor, per_decade)
    step = 10 ** (1 / per_decade)
    assert lowest * 0.998 <= rates[0] < lowest * step * 1.002
    assert lowest * factor / step * 0.998 < rates[-1] <= lowest * factor * 1.002
    assert all(b / a == pytest.approx(step, rel=2e-3) for a, b in itertools.pairwise(rates))


@pytest.mark.parametrize(
    ("lowest", "highest", "message"),
    [
        (0.0, 1.0, "--lowest and --highest should be above 0, and not the other way round: 0.0, 1.0"),
        (1.0, 0.1, "--lowest and --highest should be above 0, and not the other way round: 1.0, 0.1"),
        (0.11, 0.2, "--lowest 0.11 and --highest 0.2: expected from 1 to 100 powers of 10^(1/3) between them, not 0"),
        (1e-30, 1e30, "--lowest 1e-30 and --highest 1e+30: expected from 1 to 100 powers of 10^(1/3) between them, "),
    ],
)
def test_bounds_without_a_grid_are_named(lowest: float, highest: float, message: str) -> None:
    with pytest.raises(InputError) as caught:
        learning_rates(lowest, highest, 3)
    assert str(caught.value).startswith(message)


def test_the_best_is_the_first_at_the_target_else_the_most_accurate() -> None:
    slow, fast = Outcome(0.1, 20, 17.5, 0.95, 0.95), Outcome(0.2, 20, 12.25, 0.91, 0.91)
    short, far = Outcome(0.4, 20, None, 0.89, 0.2), Outcome(0.8, 20, None, 0.3, 0.3)
    lost = Outcome(1.6)
    assert best_of([slow, fast, short, far, lost]) is fast
    assert best_of([far, short, lost]) is short
    assert best_of([lost]) is None
    assert [outcome.diverged for outcome in (slow, lost)] == [False, True]


class _Runs:
    """Runs of known results: their summaries and curves, as `run_experiment` writes them."""

    def __init__(self, to_target: dict[float, float | None]) -> None:
        self.to_target = to_target
        self.done: list[tuple[float, int]] = []

    def __call__(self, experiment: Experiment, out: Path) -> dict[str, Any]:
        rate = experiment.work.learning_rate
        self.done.append((rate, experiment.rounds))
        if rate not in self.to_target:
            raise DivergedError("the training diverged")
        reached = self.to_target[rate]
        summary = {
            "rounds": experiment.rounds, "rounds_to_target": reached, "best_accuracy": 0.9 if reached else 0.5,
            "final_accuracy": 0.5, "initial_accuracy": 0.1,
        }  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        (out / "summary.json").write_text(json.dumps(summary))
        (out / "metrics.csv").write_text("round,test_accuracy\n1,0.4\n2,0.9\n")
        return summary


def test_each_rate_has_its_folder_and_the_files_compare_them(tmp_path: Path) -> None:
    runs = _Runs({0.1: 15.5, 0.2154: 8.25, 0.4642: None})
    told: list[Outcome] = []
    content = run_sweep(EXPERIMENT, (0.1, 0.2154, 0.4642, 1.0), tmp_path, runs, told=told.append)
    assert runs.done == [(0.1, 20), (0.2154, 20), (0.4642, 20), (1.0, 20)]
    assert [outcome.diverged for outcome in told] == [False, False, False, True]
    assert content["best"]["learning_rate"] == 0.2154
    assert json.loads((tmp_path / "sweep.json").read_text()) == content
    assert "learning_rate" not in content["experiment"]["work"]
    with (tmp_path / "sweep.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["rounds_to_target"] for row in rows] == ["15.5", "8.25", "", ""]
    assert [row["diverged"] for row in rows] == ["False", "False", "False", "True"]
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    # What diverged is not run again; all else is looked up by the run itself, which goes on where it was.
    run_sweep(EXPERIMENT, (0.1, 1.0), tmp_path, runs)
    assert runs.done[4:] == [(0.1, 20)]


def test_what_diverged_is_remembered_when_a_sweep_is_broken_off(tmp_path: Path) -> None:
    class BrokenOffError(Exception):
        pass

    def broken(experiment: Experiment, out: Path) -> dict[str, Any]:
        if experiment.work.learning_rate == 0.2154:
            raise BrokenOffError
        return runs(experiment, out)

    runs = _Runs({0.1: 15.5, 0.2154: 8.25})
    rates = (0.1, 0.2154, 1.0)
    whole = run_sweep(EXPERIMENT, rates, tmp_path, runs)
    with pytest.raises(BrokenOffError):
        run_sweep(EXPERIMENT, rates, tmp_path, broken)
    assert run_sweep(EXPERIMENT, rates, tmp_path, runs) == whole
    assert [rate for rate, _ in runs.done].count(1.0) == 1


def test_pruned_rates_get_no_more_rounds_than_the_best_took(tmp_path: Path) -> None:
    runs = _Runs({0.1: 15.5, 0.2154: None, 0.4642: 3.0, 1.0: None})
    run_sweep(EXPERIMENT, (0.1, 0.2154, 0.4642, 1.0), tmp_path, runs, prune=True)
    assert runs.done == [(0.1, 20), (0.2154, 16), (0.4642, 16), (1.0, 3)]


def test_only_a_training_that_diverged_is_told_as_one(tmp_path: Path) -> None:
    def run(experiment: Experiment, out: Path) -> dict[str, Any]:
        raise CheckFailedError("a runtime does not compute what Keras did")

    with pytest.raises(CheckFailedError, match=r"^a runtime does not compute"):
        run_sweep(EXPERIMENT, (0.1,), tmp_path, run)
    assert not (tmp_path / "sweep.json").exists()


def test_another_experiment_s_sweep_is_not_mixed_in(tmp_path: Path) -> None:
    run_sweep(EXPERIMENT, (0.1,), tmp_path, _Runs({0.1: None}))
    other = replace(EXPERIMENT, work=ClientWork(epochs=5))
    with pytest.raises(InputError) as caught:
        run_sweep(other, (0.1,), tmp_path, _Runs({0.1: None}))
    assert str(caught.value) == f"{tmp_path}: holds another experiment's sweep (work.epochs); change --out"
    (tmp_path / "sweep.json").write_text("[]")
    with pytest.raises(InputError) as caught:
        run_sweep(EXPERIMENT, (0.1,), tmp_path, _Runs({0.1: None}))
    assert str(caught.value) == f"{tmp_path / 'sweep.json'}: not a sweep's file; change --out"


def test_a_sweep_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real runs: one learns, one diverges; asked again, nothing is trained."""
    out = tmp_path / "sweep"
    arguments = ["sweep", "--clients", "10", "--fraction", "0.3", "--rounds", "2", "--out", str(out)]
    grid = ["--lowest", "0.1", "--highest", "0.1"]
    assert main([*arguments, *grid]) == 0
    output = capsys.readouterr()
    assert [line.split()[:2] for line in output.err.splitlines()] == [["lr-0.1", "1/2"], ["lr-0.1", "2/2"]]
    assert "best" in output.out
    assert output.out.splitlines()[-1] == f"results in {out}"
    assert main([*arguments, *grid, "--json"]) == 0
    again = capsys.readouterr()
    assert again.err == ""
    content = json.loads(again.out)
    assert content == json.loads((out / "sweep.json").read_text())
    summary = json.loads((out / "lr-0.1" / "summary.json").read_text())
    assert content["best"]["best_accuracy"] == summary["best_accuracy"]
    assert main([*arguments, "--lowest", "1e30", "--highest", "1e30", "--json"]) == 1
    lost = capsys.readouterr()
    assert json.loads(lost.out)["best"] is None
    assert lost.err.splitlines()[-1] == (
        "pocketfed: the training diverged at each rate up to --highest 1e+30: give a lower --lowest"
    )
    assert main([*arguments, "--lr", "0.1"]) == 2  # the grid says the rate
    assert "No such option '--lr'" in capsys.readouterr().err
