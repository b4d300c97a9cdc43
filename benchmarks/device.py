"""The benchmarks of `pocketfed bench device`: kills, and the memory that a device says a training needs."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.errors import BenchmarkError
from benchmarks.exported import exported
from benchmarks.kills import kill_devices
from benchmarks.memory import peak_mb
from benchmarks.result import Result
from benchmarks.suite import Progress, chosen, measure_each
from device_runtime.bundle import open_bundle
from device_runtime.examples import Examples
from device_runtime.tensors import TensorSpec
from device_runtime.work import ClientWork

KILLS = 250
_QUICK_KILLS = 5
_MODELS = ("digits_mlp", "mnist_2nn", "mnist_cnn", "shakespeare_lstm")
_BATCH = 20
_NEEDS = re.compile(r" needs about (\d+) MB")

NAMES = ("kills_survived", *(f"{model}_memory" for model in _MODELS))


def run_device_benchmarks(
    names: Sequence[str],
    quick: bool,
    progress: Progress = lambda done, figures: None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """Measure what `names` says, or everything where it is empty.

    Args:
        names: of `NAMES`.
        quick: a few kills, and the smallest model alone: to try whether it runs.
        progress: told how many are done, and of the last or the next one.
        tell: told in a line what came of the kills.

    Raises:
        BenchmarkError: a name is unknown, something was wrong after a kill, or one of the processes failed.
    """
    names = chosen(names, NAMES)
    with tempfile.TemporaryDirectory() as folder:

        def measure(name: str) -> Result:
            if name == "kills_survived":
                return _kills(Path(folder), quick, tell, progress)
            return _memory(Path(folder), name, "digits_mlp" if quick else name.removesuffix("_memory"))

        return measure_each(names, measure, progress)


def _kills(folder: Path, quick: bool, tell: Callable[[str], None], progress: Progress) -> Result:
    bundle = open_bundle(exported("mnist_2nn", folder)[0])
    work = ClientWork(epochs=40, batch_size=10, learning_rate=0.05, codec="q8")
    count = _QUICK_KILLS if quick else KILLS
    examples = _examples(bundle.manifest.examples, 300)
    account = kill_devices(
        bundle, examples, work, count, 0, lambda kills, faults: progress(0, f"{kills} kills, {faults}")
    )
    tell(str(account))
    if account.faults:
        raise BenchmarkError(f"after {count} kills: {account.faults[0]} ({len(account.faults)} faults)")
    return Result("kills_survived", account.kills.total(), "kills", "all of them", count)


def _memory(folder: Path, name: str, model: str) -> Result:
    """What a device says that it needs, against what it then takes."""
    bundle, data = exported(model, folder)[0], folder / "examples.npz"
    examples = _examples(open_bundle(bundle).manifest.examples, 100)
    np.savez(data, x=examples.x, y=examples.y)
    command = [sys.executable, "-m", "device_runtime.cli", "train", str(bundle), "--data", str(data)]
    command += ["--out", str(folder / "update.bin"), "--batch-size", str(_BATCH)]
    taken = peak_mb(command)
    refused = subprocess.run(
        [*command, "--max-memory", "1"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    found = _NEEDS.search(refused.stderr)
    if found is None:
        raise BenchmarkError(f"{model}: the device does not say what it needs: {refused.stderr.strip()}")
    return Result(name, float(found.group(1)), "MB", "what it takes", taken)


def _examples(specs: tuple[TensorSpec, TensorSpec], count: int) -> Examples:
    rng = np.random.default_rng(0)

    def make(spec: TensorSpec) -> npt.NDArray[Any]:
        shape = (count, *(size or 1 for size in spec.shape[1:]))
        return rng.random(shape, np.float32) if spec.dtype == "float32" else rng.integers(0, 10, shape, np.int32)

    return Examples(make(specs[0]), make(specs[1]))
