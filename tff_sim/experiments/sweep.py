"""A sweep over learning rates, as in McMahan et al. 2017, section 3: a multiplicative grid, of which the best is kept.

Each rate is a run of its own, in a folder of its own, that goes on where it was broken off.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from device_runtime.errors import InputError
from device_runtime.files import replace_whole
from tff_sim.errors import DivergedError
from tff_sim.experiments.experiment import Experiment
from tff_sim.experiments.figure import Line, accuracy_figure
from tff_sim.experiments.file import experiment_tables
from tff_sim.experiments.results import read_accuracies
from tff_sim.experiments.run_folder import MAY_DIFFER
from tff_sim.experiments.settings import differences

RESOLUTIONS = (3, 6)
"""Rates a decade: steps of 10^(1/3) or 10^(1/6), as the paper has them."""

_MOST = 100
_FILE = "sweep.json"

Run = Callable[[Experiment, Path], dict[str, Any]]
"""Runs an experiment in a folder, or goes on with it there; the content of summary.json."""


def learning_rates(lowest: float, highest: float, per_decade: int) -> tuple[float, ...]:
    """The powers 10^(k/per_decade) from `lowest` to `highest`, both included, to four digits.

    Raises:
        InputError: a bound is not above 0, there is no power between them, or there are more than 100.
    """
    if not (0 < lowest <= highest < math.inf):
        raise InputError(f"--lowest and --highest should be above 0, and not the other way round: {lowest}, {highest}")
    slack = 1e-3  # bounds to four digits, such as 0.2154, are powers
    first = math.ceil(per_decade * math.log10(lowest) - slack)
    last = math.floor(per_decade * math.log10(highest) + slack)
    if not first <= last < first + _MOST:
        raise InputError(
            f"--lowest {lowest:g} and --highest {highest:g}: expected from 1 to {_MOST} powers of 10^(1/{per_decade})"
            f" between them, not {max(last - first + 1, 0)}"
        )
    return tuple(float(f"{10 ** (power / per_decade):.4g}") for power in range(first, last + 1))


@dataclass(frozen=True)
class Outcome:
    """What came of one rate; all but the rate None where the training diverged."""

    learning_rate: float
    rounds: int | None = None
    rounds_to_target: float | None = None
    best_accuracy: float | None = None
    final_accuracy: float | None = None

    @property
    def diverged(self) -> bool:
        return self.rounds is None

    @classmethod
    def of(cls, learning_rate: float, summary: dict[str, Any]) -> Outcome:
        """From a run's summary."""
        names = ("rounds", "rounds_to_target", "best_accuracy", "final_accuracy")
        return cls(learning_rate, *(summary[name] for name in names))


def best_of(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The one with the fewest rounds to the target; where none reached it, the highest accuracy; None if all diverged.

    Rounds are of the curve made monotone, interpolated (`tff_sim.experiments.results.rounds_to_target`).
    """
    reached = [outcome for outcome in outcomes if outcome.rounds_to_target is not None]
    if reached:
        return min(reached, key=lambda outcome: outcome.rounds_to_target or 0.0)
    trained = [outcome for outcome in outcomes if not outcome.diverged]
    return max(trained, key=lambda outcome: outcome.best_accuracy or 0.0, default=None)


def run_sweep(
    experiment: Experiment,
    rates: Sequence[float],
    out: Path,
    run: Run,
    prune: bool = False,
    told: Callable[[Outcome], None] = lambda outcome: None,
) -> dict[str, Any]:
    """Run the experiment at each rate; the content of sweep.json.

    What is finished, or diverged, is not run again; the files are written after each rate.

    Args:
        experiment: all but the learning rate.
        rates: in the order in which to run them.
        out: folder for ``lr-RATE/``, sweep.json, sweep.csv and sweep.png.
        run: goes on where a folder holds a run.
        prune: give a rate no more rounds than the best one so far took to the target.
        told: called with what came of each rate.

    Raises:
        InputError: the folder holds another experiment's sweep, or can't be written.
    """
    tables = _tables(experiment)
    diverged = _diverged(out, tables)
    outcomes: list[Outcome] = []
    content: dict[str, Any] = {}
    for number, rate in enumerate(rates, start=1):
        outcome = Outcome(rate)
        if rate not in diverged:
            rounds = experiment.rounds
            best = best_of(outcomes)
            if prune and best is not None and best.rounds_to_target is not None:
                rounds = min(rounds, math.ceil(best.rounds_to_target) or 1)
            chosen = replace(experiment, rounds=rounds, work=replace(experiment.work, learning_rate=rate))
            with contextlib.suppress(DivergedError):
                outcome = Outcome.of(rate, run(chosen, out / folder_name(rate)))
        outcomes.append(outcome)
        known = [Outcome(later) for later in rates[number:] if later in diverged]  # also when this sweep is broken off
        content = _write(out, tables, [*outcomes, *known], experiment.target_accuracy)
        told(outcome)
    return content


def folder_name(rate: float) -> str:
    """Of the run at this rate."""
    return f"lr-{rate:g}"


def _tables(experiment: Experiment) -> dict[str, Any]:
    tables = experiment_tables(experiment)
    del tables["work"]["learning_rate"]
    return tables


def _diverged(out: Path, tables: dict[str, Any]) -> set[float]:
    """The rates that an earlier sweep of the same experiment found to diverge."""
    try:
        there = json.loads((out / _FILE).read_text())
        changed = differences(there["experiment"], tables).keys() - MAY_DIFFER
        if changed:
            raise InputError(f"{out}: holds another experiment's sweep ({', '.join(sorted(changed))}); change --out")
        return {run["learning_rate"] for run in there["runs"] if run["diverged"]}
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise InputError(f"{out}: can't read {_FILE} there: {error.strerror}; change --out") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{out / _FILE}: not a sweep's file; change --out") from None


def _write(out: Path, tables: dict[str, Any], outcomes: Sequence[Outcome], target: float | None) -> dict[str, Any]:
    best = best_of(outcomes)
    runs = [asdict(outcome) | {"diverged": outcome.diverged} for outcome in outcomes]
    content = {
        "experiment": tables,
        "target_accuracy": target,
        "runs": runs,
        "best": None if best is None else asdict(best),
    }
    text = io.StringIO()
    writer = csv.DictWriter(text, list(runs[0]))
    writer.writeheader()
    writer.writerows(runs)
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_whole(out / "sweep.csv", [text.getvalue().encode()])
        _figure(out, outcomes, best, target)
        replace_whole(out / _FILE, [(json.dumps(content, indent=2) + "\n").encode()])
    except OSError as error:
        raise InputError(f"{out}: can't write there: {error.strerror}; change --out") from None
    return content


def _figure(out: Path, outcomes: Sequence[Outcome], best: Outcome | None, target: float | None) -> None:
    lines = []
    for index, outcome in enumerate(outcomes):
        if not outcome.diverged:
            accuracies = read_accuracies(out / folder_name(outcome.learning_rate))
            style = {"width": 2.5, "layer": 3} if outcome is best else {"width": 1.0}
            color = f"C{index % 10}"
            lines.append(Line(f"{outcome.learning_rate:g}", accuracies, color, **style))  # type: ignore[arg-type]
    if lines:
        accuracy_figure(lines, "learning rates", target).savefig(out / "sweep.png", dpi=120)
