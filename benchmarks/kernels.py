"""What the device's interpreter makes of several ways to compute the same: python -m benchmarks.kernels.

The export chooses its formulations by these figures; docs/performance.md has those of one machine. Another processor
may rank them differently.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.epoch_loop import BATCH, STEPS, HandWritten
from benchmarks.formulations import Formulation, groups
from device_runtime.interpreter import open_interpreter, runtime_version
from export.operators import read_operators

_THREADS = (1, 2)


@dataclass(frozen=True)
class Measured:
    """A formulation's TFLite operators, and milliseconds and GFLOP/s by number of threads."""

    group: str
    formulation: str
    operators: tuple[str, ...]
    ms: dict[int, float]
    gflops: dict[int, float]


def measure_group(group: str, formulations: list[Formulation], turns: int, seconds: float) -> list[Measured]:
    """All ways to compute one thing, by turns; the fastest turn of each counts."""
    with TemporaryDirectory() as folder:
        calls: dict[tuple[str, int], Callable[[], object]] = {}
        operators = {}
        for number, formulation in enumerate(formulations):
            path = Path(folder) / f"{number}.tflite"
            file = _converted(formulation)
            path.write_bytes(file)
            operators[formulation.name] = tuple(read_operators(file, formulation.name).builtin)
            for threads in _THREADS:
                calls[formulation.name, threads] = _loaded(path, threads)
        found = _by_turns(calls, turns, seconds)
    return [
        Measured(
            group,
            formulation.name,
            operators[formulation.name],
            {threads: found[formulation.name, threads] * 1e3 for threads in _THREADS},
            {threads: formulation.flops / found[formulation.name, threads] / 1e9 for threads in _THREADS}
            if formulation.flops
            else {},
        )
        for formulation in formulations
    ]


def measure_epoch_loop(turns: int, seconds: float) -> list[Measured]:
    """An invoke a step against one While over an epoch's batches, in milliseconds a step."""
    rng = np.random.default_rng(0)
    x = rng.random((STEPS, BATCH, 784), np.float32)
    y = np.eye(10, dtype=np.float32)[rng.integers(0, 10, (STEPS, BATCH))]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "loop.tflite"
        path.write_bytes(HandWritten().convert())
        calls: dict[tuple[str, int], Callable[[], object]] = {}
        for threads in _THREADS:
            interpreter = open_interpreter(str(path), threads)
            step, epoch = (interpreter.get_signature_runner(name) for name in ("step", "epoch"))

            def single_steps(step: Any = step) -> None:
                for batch, labels in zip(x, y, strict=True):
                    step(x=batch, y=labels)

            calls["an invoke a step", threads] = single_steps
            calls["a While over the batches", threads] = lambda epoch=epoch: epoch(x=x, y=y)  # type: ignore[misc]
        found = _by_turns(calls, turns, seconds)
    names = dict.fromkeys(name for name, _ in calls)
    return [
        Measured("2NN, a step of an epoch", name, (), {t: found[name, t] * 1e3 / STEPS for t in _THREADS}, {})
        for name in names
    ]


def _converted(formulation: Formulation) -> bytes:
    specs = [tf.TensorSpec(shape, tf.float32) for shape in formulation.shapes]
    function = tf.function(formulation.function, input_signature=specs, autograph=False).get_concrete_function()
    file: bytes = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module()).convert()
    return file


def _loaded(path: Path, threads: int) -> Callable[[], object]:
    interpreter = open_interpreter(str(path), threads)
    inputs = [
        (details["index"], [BATCH if size < 0 else size for size in details["shape_signature"]])
        for details in interpreter.get_input_details()
    ]
    for index, shape in inputs:
        interpreter.resize_tensor_input(index, shape)
    interpreter.allocate_tensors()
    rng = np.random.default_rng(0)
    for index, shape in inputs:
        interpreter.set_tensor(index, rng.standard_normal(shape).astype(np.float32))
    invoke: Callable[[], object] = interpreter.invoke
    return invoke


def _by_turns(
    calls: dict[tuple[str, int], Callable[[], object]], turns: int, seconds: float
) -> dict[tuple[str, int], float]:
    medians: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
    for _ in range(turns):
        for key, call in calls.items():
            call()
            taken: list[float] = []
            while sum(taken) < seconds or len(taken) < 3:
                start = time.perf_counter()
                call()
                taken.append(time.perf_counter() - start)
            medians[key].append(median(taken))
    return {key: min(values) for key, values in medians.items()}


def measure(quick: bool, tell: Callable[[str], None] = lambda title: None) -> list[Measured]:
    """Everything; quickly, to try whether it runs, or in about a minute."""
    turns, seconds = (1, 0.0) if quick else (7, 0.05)
    measured = []
    for group, formulations in groups().items():
        tell(group)
        measured += measure_group(group, formulations, turns, seconds)
    tell("2NN, a step of an epoch")
    return measured + measure_epoch_loop(turns, seconds)


def main() -> None:
    """Parse the arguments; print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="to try whether it runs, not how fast")
    parser.add_argument("--json", action="store_true", help="print a JSON list on standard output")
    options = parser.parse_args()
    measured = measure(options.quick, lambda title: print(f"measuring: {title}", file=sys.stderr))
    if options.json:
        print(json.dumps([asdict(one) for one in measured], indent=2))
        return
    print(f"{runtime_version()}; milliseconds and GFLOP/s on {' and '.join(map(str, _THREADS))} threads")
    group = ""
    for one in measured:
        if one.group != group:
            print(f"\n{one.group}")
            group = one.group
        figures = "  ".join(
            f"{one.ms[threads]:8.3f} ms" + (f" {one.gflops[threads]:6.1f}" if one.gflops else "")
            for threads in _THREADS
        )
        print(f"  {one.formulation:32s} {figures}  {' '.join(one.operators)}")


if __name__ == "__main__":
    main()
