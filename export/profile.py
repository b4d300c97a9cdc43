"""A profile of a training step: what each operator of the artifact takes, timed alone in the device's interpreter.

Every operator of the `train` signature is taken out into a file of its own, with the shapes and values that a real
step gives it. Equal ones are timed once. Alone, an operator finds its inputs in the cache, so that the sum is less
than a whole step; what the step takes is measured beside it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema

from device_runtime.bundle import TRAIN_ARTIFACT, Bundle
from device_runtime.errors import InputError
from device_runtime.interpreter import open_interpreter
from device_runtime.trainer import Trainer, write_calls
from export.flatbuffer import pack, subgraph_index, unpack
from export.operator_layers import layers_of
from export.operators import BUILTIN_NAMES
from export.single_operator import extract, inputs_of, is_constant, key_of

REST = frozenset({"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "IF", "WHILE", "CALL_ONCE"})
"""Operators that touch variables or control flow mean nothing alone."""

_SECONDS = 0.02
"""Spent on an operator in each of three turns, of which the fastest counts."""


@dataclass(frozen=True)
class OperatorTime:
    """Operators of a layer that are alike: their number, and milliseconds of one."""

    operator: str
    layer: str
    inputs: str
    outputs: str
    count: int
    ms: float

    @property
    def total_ms(self) -> float:
        return self.count * self.ms


@dataclass(frozen=True)
class Profile:
    """A step of `batch_size` examples: its own milliseconds, those of its operators, and how many were not timed."""

    batch_size: int
    threads: int
    step_ms: float
    operators: tuple[OperatorTime, ...]
    rest: dict[str, int]

    @property
    def sum_ms(self) -> float:
        """Of all operators that were timed."""
        return sum(operator.total_ms for operator in self.operators)

    @property
    def by_type(self) -> dict[str, tuple[int, float]]:
        """Kind of operator → count and milliseconds together, the costliest first."""
        kinds: dict[str, tuple[int, float]] = {}
        for timed in self.operators:
            count, total = kinds.get(timed.operator, (0, 0.0))
            kinds[timed.operator] = (count + timed.count, total + timed.total_ms)
        return dict(sorted(kinds.items(), key=lambda kind: -kind[1][1]))

    def to_json(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "threads": self.threads,
            "step_ms": self.step_ms,
            "sum_ms": self.sum_ms,
            "by_type": {name: {"count": count, "ms": total} for name, (count, total) in self.by_type.items()},
            "operators": [{**asdict(timed), "total_ms": timed.total_ms} for timed in self.operators],
            "rest": self.rest,
        }


def profile_bundle(
    bundle: Bundle,
    batch_size: int = 10,
    threads: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Profile:
    """Time a training step of a verified bundle, and every operator of it.

    Args:
        bundle: whose golden batch is repeated to `batch_size` examples.
        batch_size: B.
        threads: of the interpreter.
        progress: told how many kinds of operators are timed, of how many.

    Raises:
        InputError: `batch_size` is less than 1.
        IntegrityError: the interpreter can't load the artifact.
    """
    if batch_size < 1:
        raise InputError(f"--batch-size should be at least 1, not {batch_size}")
    golden = bundle.golden()
    x, y = (np.resize(golden[name], (batch_size, *golden[name].shape[1:])) for name in ("x", "y"))
    trainer = Trainer(bundle, threads)
    trainer.set_weights(bundle.initial_weights())
    step_ms = _fastest(lambda: trainer.step(x, y, 0.01), least=3) * 1e3

    step = _Step(bundle, x, y)
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for position, operator in enumerate(step.graph.operators):
        if step.names[position] not in REST:
            kinds.setdefault(key_of(step.model, step.graph, operator, step.shapes(operator)), []).append(position)
    overhead = step.time(None, threads)
    timed: list[OperatorTime] = []
    for done, positions in enumerate(kinds.values()):
        progress(done, len(kinds))
        ms = max(step.time(positions[0], threads) - overhead, 0.0) * 1e3
        for layer, count in Counter(step.layers[position] for position in positions).items():
            timed.append(step.describe(positions[0], layer, count, ms))
    progress(len(kinds), len(kinds))
    timed.sort(key=lambda one: -one.total_ms)
    rest = Counter(name for name in step.names if name in REST)
    return Profile(batch_size, threads, step_ms, tuple(timed), dict(sorted(rest.items())))


class _Step:
    """The `train` subgraph, and all of its tensors as a real step leaves them."""

    def __init__(self, bundle: Bundle, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> None:
        artifact = bundle.file(TRAIN_ARTIFACT).read_bytes()
        self.model = unpack(artifact)
        self._interpreter = tf.lite.Interpreter(
            model_content=artifact,
            experimental_preserve_all_tensors=True,
            # A delegate would keep the tensors between its operators to itself.
            experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        for signature, inputs in write_calls(bundle.initial_weights(), bundle.manifest.variables):
            self._interpreter.get_signature_runner(signature)(**inputs)
        self._interpreter.get_signature_runner("anchor")(unused=np.float32(0))
        train = self._interpreter.get_signature_runner("train")
        inputs = {"x": x, "y": y, "learning_rate": np.float32(0.01), "proximal": np.float32(0)}
        if "seed" in train.get_input_details():
            inputs["seed"] = np.int32(0)
        train(**inputs)
        self._index = subgraph_index(self.model, "train")
        self.graph = self.model.subgraphs[self._index]
        codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in self.model.operatorCodes]
        self.names = [BUILTIN_NAMES[codes[operator.opcodeIndex]] for operator in self.graph.operators]
        weighted = {spec.name.split("/")[0] for spec in bundle.manifest.tensors}
        self.layers = layers_of(self.graph, self.names, bundle.manifest.name, weighted)

    def shapes(self, operator: Any) -> dict[int, tuple[int, ...]]:
        """Of the operator's inputs and outputs, by their index."""
        return {index: self._shape(index) for index in (*inputs_of(operator), *map(int, operator.outputs))}

    def _shape(self, index: int) -> tuple[int, ...]:
        details = self._interpreter._get_tensor_details(index, self._index)
        return tuple(map(int, details["shape"]))

    def time(self, position: int | None, threads: int) -> float:
        """Seconds of one operator in the device's interpreter; of None, those of an interpreter with nothing to do."""
        if position is None:
            return self._time(_nothing(), [np.zeros(1, np.float32)], threads)
        operator = self.graph.operators[position]
        variable = [
            index
            for index in dict.fromkeys(inputs_of(operator))
            if not is_constant(self.model, self.graph.tensors[index])
        ]
        values = [self._interpreter.get_tensor(index, self._index) for index in variable]
        return self._time(extract(self.model, self.graph, operator), values, threads)

    def _time(self, file: bytes, values: list[npt.NDArray[Any]], threads: int) -> float:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "operator.tflite"
            path.write_bytes(file)
            alone = open_interpreter(str(path), threads)
            inputs = [details["index"] for details in alone.get_input_details()]
            for index, value in zip(inputs, values, strict=True):
                alone.resize_tensor_input(index, value.shape)
            alone.allocate_tensors()
            for index, value in zip(inputs, values, strict=True):
                alone.set_tensor(index, value)
            return _fastest(alone.invoke)

    def describe(self, position: int, layer: str, count: int, ms: float) -> OperatorTime:
        operator = self.graph.operators[position]
        inputs = [index for index in inputs_of(operator) if not is_constant(self.model, self.graph.tensors[index])]
        return OperatorTime(
            self.names[position], layer, self._told(inputs), self._told(list(map(int, operator.outputs))), count, ms
        )

    def _told(self, indices: list[int]) -> str:
        """Such as ``10×784 784×200``, or ``25 of 1×7840``."""
        shapes = Counter("×".join(map(str, self._shape(index))) or "1" for index in indices)
        return " ".join(
            f"{count} of {shape}" if count > 2 else " ".join([shape] * count) for shape, count in shapes.items()
        )


def _nothing() -> bytes:
    """A TFLite file whose output is its input."""
    model, graph, tensor = schema.ModelT(), schema.SubGraphT(), schema.TensorT()
    tensor.name, tensor.shape, tensor.buffer = b"x", [1], 0
    graph.tensors, graph.inputs, graph.outputs, graph.operators = [tensor], [0], [0], []
    model.version, model.buffers, model.subgraphs, model.operatorCodes = 3, [schema.BufferT()], [graph], []
    return pack(model)


def _fastest(call: Callable[[], object], least: int = 1) -> float:
    """Seconds of a call: the median of a turn, in the fastest of three turns."""
    call()
    turns = []
    for _ in range(3):
        seconds: list[float] = []
        while (sum(seconds) < _SECONDS and len(seconds) < 2_000) or len(seconds) < least:
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        turns.append(median(seconds))
    return min(turns)
