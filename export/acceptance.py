"""The golden self-test of a new bundle, in every installed runtime; what fails it is traced to its kernel."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import tensorflow as tf

from device_runtime.bundle import Bundle
from device_runtime.errors import CheckFailedError
from device_runtime.interpreter import runtime_version
from device_runtime.selftest import SelfTestResult, self_test
from export.kernel_check import Array, WrongKernel, operators_of, wrong_kernels
from export.reference import symbols_of, synthetic_batch
from export.runtimes import Runtime, RuntimeFailedError, child_environment, installed_runtimes
from export.training_graph import TrainingGraph
from models import ModelSpec
from models.state import all_layers

_SECONDS = 600
_NAMED = 3
BATCH = 7
"""Examples that kernels are checked with."""

FindKernels = Callable[[Runtime], list[WrongKernel]]


def accept(bundle: Bundle, find_kernels: FindKernels) -> None:
    """Run the self-test in this interpreter and in those that POCKETFED_RUNTIMES names.

    Args:
        bundle: whole, though nobody has signed it yet.
        find_kernels: looks for wrong kernels where a runtime fails.

    Raises:
        CheckFailedError: a runtime does not compute what Keras did; the message names the runtime, the tensor, its
            layer, and the operators whose kernels are wrong.
        InputError: POCKETFED_RUNTIMES names what is not there.
    """
    here, *further = installed_runtimes()
    _require(self_test(bundle), runtime_version(), here, find_kernels)
    for python in further:
        runtime, result = self_test_in(python, bundle.path)
        _require(result, runtime, python, find_kernels)


def self_test_in(python: Path, bundle: Path) -> tuple[str, SelfTestResult]:
    """The interpreter's name, and the result of the self-test in the process of another Python.

    Raises:
        RuntimeFailedError: the self-test could not be run to its end.
    """
    command = [str(python), "-m", "device_runtime.cli", "selftest", "--json", str(bundle)]
    try:
        done = subprocess.run(
            command, env=child_environment(), capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise RuntimeFailedError(f"{python}: the self-test took longer than {_SECONDS} s") from None
    if done.returncode not in (0, CheckFailedError.exit_code) or not done.stdout.startswith("{"):
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeFailedError(f"{python}: the self-test ended with status {done.returncode}: {reason}")
    report = json.loads(done.stdout)
    largest = math.inf if report["max_rel"] is None else float(report["max_rel"])
    return report["runtime"], SelfTestResult(bool(report["ok"]), largest, report["tensor"])


def kernels_of(spec: ModelSpec, model: tf.keras.Model, seed: int = 0) -> FindKernels:
    """A search among the operators of the training and inference functions, with a synthetic batch."""
    rng = np.random.Generator(np.random.Philox(seed))
    x, y = synthetic_batch(spec, model.output_shape[-1], BATCH, rng, symbols_of(model))
    numbers = {"learning_rate": np.float32(0.05), "proximal": np.float32(0.1), "seed": np.int32(1)}
    inputs: dict[str, Array] = {"x": x, "y": y} | {name: np.asarray(value) for name, value in numbers.items()}
    layers: Collection[str] = {layer.name for layer in all_layers(model)}

    def find(runtime: Runtime) -> list[WrongKernel]:
        graph = TrainingGraph(spec, model, shared=False)  # inside of calls, nothing can be looked at
        functions = graph.functions()
        operators = [
            operator for name in ("train", "infer") for operator in operators_of(functions[name], inputs, layers)
        ]
        return wrong_kernels(operators, runtime)

    return find


def _require(result: SelfTestResult, runtime: str, python: Path, find_kernels: FindKernels) -> None:
    if result.ok:
        return
    layer, _, weight = result.tensor.rpartition("/")
    where = f"in layer {layer!r}, {layer}/{weight}" if layer else weight
    with Runtime(python) as process:
        kernels = [str(kernel) for kernel in find_kernels(process)]
    if len(kernels) > _NAMED:
        kernels = [*kernels[:_NAMED], f"and {len(kernels) - _NAMED} more"]
    reason = "; ".join(kernels) or "its kernels are right one by one: a layer's gradient is emitted wrongly"
    raise CheckFailedError(
        f"the exported artifact does not compute what Keras does: on {runtime}, {where} differs by"
        f" {result.max_rel:.2e} of its largest value; {reason}; nothing was written"
    )
