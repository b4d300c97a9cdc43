"""Kernels checked operator by operator, against TensorFlow's: a wrong one is found where it is, and not by its effects.

The functions of a training artifact consist of TensorFlow operators, each of which TFLite has as a builtin. Every
distinct one of them is converted by itself, with its attributes and constant inputs, is given what it meets in the
function, and is compared. Many share an artifact, side by side: none depends on another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from export.convert import training_artifact
from export.errors import ExportError
from export.operators import read_operators
from export.runtimes import Runtime, RuntimeFailedError

Array = npt.NDArray[Any]

TOLERANCE = 1e-5
"""Largest difference over the largest value of an output; a wrong kernel is off by more than 1e-2."""
_HUGE = 1e30  # beyond it values overflow, in TensorFlow to infinity, and elsewhere to the largest float
_PER_ARTIFACT = 100
_LARGE = 256  # constants of more elements are told apart by their shape alone: filters, tables
_SUMS = frozenset({"BatchMatMulV2", "MatMul", "Mean", "Sum"})
_NO_KERNEL = frozenset({"Const", "Identity", "NoOp", "Placeholder", "ReadVariableOp"})


@dataclass(frozen=True)
class Operator:
    """An operator of a traced function, with what goes into it and what comes out in TensorFlow.

    Attributes:
        node: type and attributes.
        layer: the one that it belongs to, or else its scope.
        shapes: of its inputs; None is free.
        inputs, outputs: values.
        constant: for each input, whether it is part of the artifact.
    """

    node: Any
    layer: str
    shapes: tuple[tuple[int | None, ...], ...]
    inputs: tuple[Array, ...]
    constant: tuple[bool, ...]
    outputs: tuple[Array, ...]

    @property
    def attributes(self) -> dict[str, Any]:
        return {name: value for name, value in self.node.attr.items() if not name.startswith("_")}

    @property
    def key(self) -> str:
        """The same for operators that are one kernel's work on equal shapes."""
        attributes = sorted(
            (name, value.SerializeToString(deterministic=True)) for name, value in self.attributes.items()
        )
        constants = [
            value.tobytes() if fixed and value.size <= _LARGE else b""
            for value, fixed in zip(self.inputs, self.constant, strict=True)
        ]
        actual = [(value.shape, value.dtype.str) for value in self.inputs]
        return hashlib.sha256(repr((self.node.op, attributes, self.shapes, actual, constants)).encode()).hexdigest()

    def emit(self, values: Sequence[tf.Tensor]) -> tuple[tf.Tensor, ...]:
        """The operator in the present graph."""
        graph = tf.compat.v1.get_default_graph()
        types = [tf.as_dtype(output.dtype) for output in self.outputs]
        return tuple(graph.create_op(self.node.op, list(values), types, attrs=self.attributes).outputs)


@dataclass(frozen=True)
class WrongKernel:
    """An operator that a runtime computes otherwise than TensorFlow.

    Attributes:
        operator: its TensorFlow type.
        builtins: what the converter made of it.
        layer: where it was met.
        shapes: of its inputs.
        difference: the largest, over the largest value; infinite where the runtime refuses it.
        runtime: the interpreter's name.
        problem: what the converter or the interpreter said, if it refused.
    """

    operator: str
    builtins: tuple[str, ...]
    layer: str
    shapes: tuple[tuple[int, ...], ...]
    difference: float
    runtime: str
    problem: str = ""

    def __str__(self) -> str:
        shapes = ", ".join(str(list(shape)) for shape in self.shapes)
        how = self.problem or f"is off by {self.difference:.1e} of its largest value"
        return (
            f"the kernel of {'+'.join(self.builtins) or 'no builtin'} (TensorFlow's {self.operator} of {shapes})"
            f" in layer {self.layer!r} on {self.runtime}: {how}"
        )


def operators_of(
    function: Any, inputs: Mapping[str, Array], layers: Collection[str] = (), seed: int = 0
) -> list[Operator]:
    """The distinct operators of a concrete function, with the values that they meet when it is given these inputs.

    Operators of branches are left out, and those that only read or assign variables. Variables count as what they
    are now, moved a little, since many are zero at first. An operator's layer is the last of `layers` in its name.
    """
    rng = np.random.default_rng(seed)
    source = function.graph
    graph = tf.Graph()
    definition = source.as_graph_def()
    for node in definition.node:  # the order of reading and assigning does not matter, where nothing is assigned
        node.input[:] = [name for name in node.input if not name.startswith("^")]
    with graph.as_default():
        tf.import_graph_def(definition, name="")
    handles = {id(variable.handle): variable for variable in source.variables}
    variables = {inner.name: handles[id(outer)] for outer, inner in source.captures if id(outer) in handles}
    feeds = {tensor.name: inputs[tensor.name.split(":")[0]] for tensor in _given(function)}
    feeds |= {inner.name: outer.numpy() for outer, inner in source.captures if id(outer) not in handles}
    checked = []
    for op in source.get_operations():
        if op.type == "ReadVariableOp" and op.inputs[0].name in variables:
            feeds[op.outputs[0].name] = _moved(variables[op.inputs[0].name], rng)
        elif any(x.dtype in (tf.resource, tf.variant) for x in op.inputs):
            for output in op.outputs:
                feeds[output.name] = rng.standard_normal([size or 1 for size in output.shape]).astype(np.float32)
        elif op.type == "Identity" and op.inputs[0].name in feeds:
            feeds[op.outputs[0].name] = feeds[op.inputs[0].name]
        elif op.outputs and op.type not in _NO_KERNEL and not all(_is_constant(x) for x in op.inputs):
            checked.append(op)
    names = {x.name for op in checked for x in (*op.inputs, *op.outputs)}
    with tf.compat.v1.Session(graph=graph) as session:
        values = session.run({name: name for name in names}, feeds)
    found: dict[str, Operator] = {}
    for op in checked:
        if not all(values[x.name].size for x in (*op.inputs, *op.outputs)):
            continue  # an interpreter takes and gives no empty tensors
        operator = Operator(
            node=op.node_def,
            layer=_layer(op.name, layers),
            shapes=tuple(tuple(x.shape) if x.shape.rank is not None else values[x.name].shape for x in op.inputs),
            inputs=tuple(np.asarray(values[x.name]) for x in op.inputs),
            constant=tuple(_is_constant(x) for x in op.inputs),
            outputs=tuple(np.asarray(values[x.name]) for x in op.outputs),
        )
        found.setdefault(operator.key, operator)
    return list(found.values())


def wrong_kernels(operators: Iterable[Operator], runtime: Runtime) -> list[WrongKernel]:
    """Those of the operators that the runtime computes otherwise; of equal ones the first counts."""
    distinct = list({operator.key: operator for operator in operators}.values())
    found = []
    for start in range(0, len(distinct), _PER_ARTIFACT):
        found += list(_wrong(distinct[start : start + _PER_ARTIFACT], runtime))
    return found


def _wrong(operators: Sequence[Operator], runtime: Runtime) -> Iterator[WrongKernel]:
    try:
        artifact = _artifact(operators)
        given = {
            f"i{n}_{k}": value
            for n, operator in enumerate(operators)
            for k, (value, fixed) in enumerate(zip(operator.inputs, operator.constant, strict=True))
            if not fixed
        }
        (outputs,) = runtime.run(artifact, [("check", given)])
    except (ExportError, RuntimeFailedError) as error:
        # One of them can't be converted or run: it is looked for in halves.
        if len(operators) == 1:
            yield _report(operators[0], runtime, float("inf"), str(error))
        else:
            middle = len(operators) // 2
            yield from _wrong(operators[:middle], runtime)
            yield from _wrong(operators[middle:], runtime)
        return
    for n, operator in enumerate(operators):
        difference = max(_difference(operator, outputs[f"o{n}_{k}"], want) for k, want in enumerate(operator.outputs))
        if not difference <= TOLERANCE:
            yield _report(operator, runtime, difference)


def _artifact(operators: Sequence[Operator]) -> bytes:
    """One signature ``check`` with the inputs and outputs of all operators."""
    specs = {
        f"i{n}_{k}": tf.TensorSpec(shape, operator.inputs[k].dtype, name=f"i{n}_{k}")
        for n, operator in enumerate(operators)
        for k, shape in enumerate(operator.shapes)
        if not operator.constant[k]
    }

    def check(**given: tf.Tensor) -> dict[str, tf.Tensor]:
        results: dict[str, tf.Tensor] = {}
        for n, operator in enumerate(operators):
            values = [
                tf.constant(value) if operator.constant[k] else given[f"i{n}_{k}"]
                for k, value in enumerate(operator.inputs)
            ]
            results |= {f"o{n}_{k}": output for k, output in enumerate(operator.emit(values))}
        return results

    return training_artifact({"check": tf.function(check, autograph=False).get_concrete_function(**specs)})


def _report(operator: Operator, runtime: Runtime, difference: float, problem: str = "") -> WrongKernel:
    try:
        builtins = tuple(read_operators(_artifact([operator]), operator.node.op).builtin)
    except ExportError:
        builtins = ()
    shapes = tuple(value.shape for value in operator.inputs)
    return WrongKernel(operator.node.op, builtins, operator.layer, shapes, difference, runtime.name, problem)


def _difference(operator: Operator, got: Array, want: Array) -> float:
    if got.shape != want.shape:
        return float("inf")
    if not want.size:
        return 0.0
    if not np.issubdtype(want.dtype, np.floating):
        return float(np.any(got != want))
    a, b = (np.clip(np.nan_to_num(value.astype(np.float64), nan=2 * _HUGE), -_HUGE, _HUGE) for value in (got, want))
    scale = float(np.abs(b).max()) or 1.0
    if operator.node.op in _SUMS:  # what is zero in theory is a rest of rounding
        factors = [
            float(np.abs(x).max()) for x, fixed in zip(operator.inputs, operator.constant, strict=True) if not fixed
        ]
        scale = max(scale, min(float(np.prod(factors)), _HUGE))
    return float(np.abs(a - b).max()) / scale


def _given(function: Any) -> list[tf.Tensor]:
    """The inputs that a caller gives; the rest are captured variables."""
    return list(function.inputs[: len(function.inputs) - len(function.captured_inputs)])


def _layer(name: str, layers: Collection[str]) -> str:
    *scopes, _ = name.split("/")
    return next((scope for scope in reversed(scopes) if scope in layers), "/".join(scopes) or "the training step")


def _is_constant(tensor: tf.Tensor) -> bool:
    return tf.get_static_value(tensor) is not None


def _moved(variable: tf.Variable, rng: np.random.Generator) -> Array:
    value = variable.numpy()
    moved = value + 0.1 * rng.standard_normal(value.shape)
    return np.asarray(np.abs(moved) if (value >= 0).all() else moved, value.dtype)
