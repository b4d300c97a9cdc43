"""The benchmarks of `pocketfed bench simulate`: a round beside stock TFF's, and a whole simulation's memory."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

from benchmarks.exported import exported
from benchmarks.result import Result
from benchmarks.suite import Progress, chosen, measure_each
from benchmarks.tree_memory import TreePeak
from benchmarks.turns import Plan, Side, by_turns

PEAK_MB = 900.0
_MODELS = {"mlp": "mnist_2nn", "cnn": "mnist_cnn"}
_PLANS = {"mlp": Plan(10, 4), "cnn": Plan(4, 2)}
_QUICK = Plan(1, 1)
_MEMORY_ROUNDS = 10


class SimulateBenchmarks:
    """The benchmarks by name; bundles are exported once, into `folder`.

    Args:
        folder: for bundles.
        data_dir: with MNIST's files; the embedded digits, enlarged, without one.
        quick: one round of each side: to try whether it runs.
    """

    def __init__(self, folder: Path, data_dir: Path | None, quick: bool = False) -> None:
        self._data = "digits" if data_dir is None else str(data_dir.absolute())
        self._title = "embedded digits enlarged to 28×28" if data_dir is None else "MNIST"
        self._quick = quick
        self._bundle = cache(lambda model: exported(model, folder)[0])

    @property
    def all(self) -> dict[str, Callable[[], Result]]:
        """Name → function that measures it."""
        named: dict[str, Callable[[str], Result]] = {}
        for suffix, engine in {"": "default", "_device": "device"}.items():
            for short in _MODELS:
                named[f"{short}_round{suffix}_vs_stock_tff"] = partial(self._against_stock, engine, short)
            named[f"mlp_round{suffix}_peak_mb"] = partial(self._memory, engine)
        return {name: partial(measure, name) for name, measure in named.items()}

    def _against_stock(self, engine: str, short: str, name: str) -> Result:
        model, plan = _MODELS[short], _QUICK if self._quick else _PLANS[short]
        with self._side(engine, model) as ours, self._side("stock", model) as theirs:
            value, reference_value = by_turns(ours, theirs, plan)
        note = f"10 of 100 clients × 600 {self._title}, E = 1, B = 10; {plan.turns} turns of {plan.steps} rounds"
        return Result(name, value / 1e3, "s", "stock TFF, build_weighted_fed_avg", reference_value / 1e3, note)

    def _memory(self, engine: str, name: str) -> Result:
        self._bundle("mnist_2nn")
        with TreePeak() as tree, self._side(engine, "mnist_2nn") as side:
            side.turn(1 if self._quick else _MEMORY_ROUNDS)
        note = "PSS of all its processes and memory files, from the start on"
        return Result(name, tree.peak_mb, "MB", f"fixed, {PEAK_MB:.0f} MB", PEAK_MB, note)

    def _side(self, engine: str, model: str) -> Side:
        return Side(Path(sys.executable), "simulation", engine, model, self._data, self._bundle(model))


NAMES = tuple(SimulateBenchmarks(Path(), None).all)


def run_simulate_benchmarks(
    names: Sequence[str],
    data_dir: Path | None,
    quick: bool,
    progress: Progress = lambda done, figures: None,
) -> list[Result]:
    """Measure what `names` says, or everything where it is empty.

    Args:
        names: of `NAMES`.
        data_dir: MNIST's folder; the embedded digits, enlarged, without one.
        quick: a round of each side: to try whether it runs, not how fast.
        progress: told how many are done, and of the last or the next one.

    Raises:
        BenchmarkError: a name is unknown, or one of the processes failed.
        DatasetError: the folder is missing, or a file in it is damaged.
    """
    names = chosen(names, NAMES)
    if data_dir is not None:
        from tff_sim import datasets

        datasets.load("mnist", data_dir)  # what is wrong is told now, in one line
    with tempfile.TemporaryDirectory() as folder:
        benchmarks = SimulateBenchmarks(Path(folder), data_dir, quick).all
        return measure_each(names, lambda name: benchmarks[name](), progress)
