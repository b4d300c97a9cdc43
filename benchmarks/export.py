"""The benchmarks of `pocketfed bench export`: training steps, the export itself, and a device's memory."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.exported import exported
from benchmarks.memory import peak_mb
from benchmarks.result import Result
from benchmarks.suite import Progress, chosen, measure_each
from benchmarks.turns import ROOT, Plan, Side, by_turns

PYTORCH = ROOT / ".bench" / "pytorch" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
BATCH = 10
EXPORT_SECONDS = 15.0
TRAIN_MB = 60.0


class ExportBenchmarks:
    """The benchmarks by name; bundles that several of them need are exported once, into `folder`."""

    def __init__(self, folder: Path, quick: bool = False) -> None:
        self._folder = folder
        self._quick = quick
        self._bundles: dict[str, tuple[Path, float]] = {}

    @property
    def all(self) -> dict[str, Callable[[], Result]]:
        """Name → function that measures it."""
        named: dict[str, Callable[[str], Result]] = {
            "cnn_step_vs_pytorch": partial(self._against_pytorch, "mnist_cnn", Plan(12, 12)),
            "cnn_step_2threads_vs_flex": self._cnn_against_flex,
            "mlp_step_vs_pytorch": partial(self._against_pytorch, "mnist_2nn", Plan(12, 200)),
            "lstm_step_vs_tensorflow": self._lstm_against_tensorflow,
            "lstm_export_seconds": self._lstm_export,
            "cnn_train_peak_mb": self._cnn_memory,
        }
        return {name: partial(measure, name) for name, measure in named.items()}

    def _against_pytorch(self, model: str, plan: Plan, name: str) -> Result:
        pytorch = partial(Side, PYTORCH, "pytorch", model, 1, BATCH)
        return self._step(name, model, 1, pytorch, "PyTorch, 1 thread", plan)

    def _cnn_against_flex(self, name: str) -> Result:
        flex = partial(Side, Path(sys.executable), "flex", "mnist_cnn", 2, BATCH)
        return self._step(name, "mnist_cnn", 2, flex, "TFLite with Flex, 2 threads", Plan(12, 12))

    def _lstm_against_tensorflow(self, name: str) -> Result:
        model = "shakespeare_lstm"
        tensorflow = partial(Side, Path(sys.executable), "tensorflow", model, 2, BATCH)
        return self._step(name, model, 2, tensorflow, "TensorFlow, 2 threads", Plan(10, 5))

    def _step(
        self, name: str, model: str, threads: int, reference: Callable[[], Side], title: str, plan: Plan
    ) -> Result:
        bundle = self._bundle(model)[0]
        if self._quick:
            plan = Plan(2, 2)
        with Side(Path(sys.executable), "device", bundle, threads, BATCH) as ours, reference() as theirs:
            value, reference_value = by_turns(ours, theirs, plan)
        return Result(name, value, "ms", title, reference_value)

    def _lstm_export(self, name: str) -> Result:
        seconds = [self._bundle("shakespeare_lstm")[1]]
        if not self._quick:
            seconds.append(exported("shakespeare_lstm", self._folder)[1])
        return Result(name, min(seconds), "s", f"fixed, {EXPORT_SECONDS:.0f} s", EXPORT_SECONDS)

    def _cnn_memory(self, name: str) -> Result:
        bundle, data = self._bundle("mnist_cnn")[0], self._folder / "examples.npz"
        rng = np.random.default_rng(0)
        np.savez(data, x=rng.random((100, 28, 28, 1), np.float32), y=rng.integers(0, 10, 100, np.int32))
        command = [sys.executable, "-m", "device_runtime.cli", "train", str(bundle), "--data", str(data)]
        command += ["--out", str(self._folder / "update.bin")]
        peaks = [peak_mb(command) for _ in range(1 if self._quick else 3)]
        return Result(name, median(peaks), "MB", f"fixed, {TRAIN_MB:.0f} MB", TRAIN_MB)

    def _bundle(self, model: str) -> tuple[Path, float]:
        """Path of the model's bundle, and the seconds that its export took."""
        if model not in self._bundles:
            self._bundles[model] = exported(model, self._folder)
        return self._bundles[model]


NAMES = tuple(ExportBenchmarks(Path()).all)


def run_export_benchmarks(
    names: Sequence[str], quick: bool, progress: Progress = lambda done, figures: None
) -> list[Result]:
    """Measure what `names` says, or everything where it is empty.

    Args:
        names: of `NAMES`.
        quick: only a few repetitions: to try whether it runs, not how fast.
        progress: told how many are done, and of the last or the next one.

    Raises:
        BenchmarkError: a name is unknown, PyTorch's environment is missing, or one of the processes failed.
    """
    names = chosen(names, NAMES)
    if any(name.endswith("_vs_pytorch") for name in names) and not PYTORCH.exists():
        raise BenchmarkError(f"{PYTORCH}: PyTorch's environment is missing; 'make bench-setup' installs it")
    with tempfile.TemporaryDirectory() as folder:
        benchmarks = ExportBenchmarks(Path(folder), quick).all
        return measure_each(names, lambda name: benchmarks[name](), progress)
