"""A Keras model's forward pass, traced once and emitted again as TFLite builtins; and back-propagation through it.

Keras calls TensorFlow operators that TFLite lacks or computes slowly, and their gradients call more of them. So
the model is traced into a graph of its own, and each operator of that is emitted by its lowering, which also says
how gradients pass back. Weights are read once a step, and every other operator is a pure function: assignments that
the model makes (moving averages) are collected, and carried out at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import function_def_to_graph

from export.backward import Step, Value, propagate
from export.errors import ExportError
from export.lowering import LOWERINGS, Call, Gradient, emit
from export.shared import CALLS, SharedFunction, fixed_inputs

_WITHOUT_GRADIENT = frozenset(
    {
        "ArgMax", "ArgMin", "Equal", "Greater", "GreaterEqual", "Less", "LessEqual", "LogicalAnd", "LogicalNot",
        "LogicalOr", "NotEqual", "OnesLike", "Rank", "Shape", "ShapeN", "Sign", "Floor", "Round", "Size", "ZerosLike",
    }
)  # fmt: skip
"""Operators through which no gradient passes in TensorFlow either."""
_IGNORED = frozenset({"NoOp", "Assert", "Placeholder"})
_INSTEAD = {
    "While": "give a recurrent layer a fixed number of steps",
    "StatelessWhile": "give a recurrent layer a fixed number of steps",
    "If": "compute both ways and select with tf.where",
    "StatelessIf": "compute both ways and select with tf.where",
    "FFT": "use a dense layer",
    "Cumsum": "multiply with a triangular matrix",
    "Prod": "sum logarithms",
    "TopKV2": "use tf.reduce_max",
}


def trace(function: Callable[..., Any], specs: Sequence[tf.TensorSpec]) -> Any:
    """The graph of a function that calls the model, and returns a tensor or a tuple of tensors."""
    try:
        with tf.init_scope():
            return tf.function(function, autograph=False).get_concrete_function(*specs).graph
    except ExportError as error:
        # Keras puts lines of its own around what is raised inside of a layer.
        lines = str(error).splitlines()
        raise ExportError(next((line for line in lines if line.startswith("layer ")), lines[0])) from None


class Replay:
    """A function of the model, such as its loss, in the current graph.

    Args:
        graph: the traced function, see `trace`.
        inputs: tensors of the current graph, as the function takes them.
        trained: the variables that may change; all others are constants of the artifact.
        layers: names of the model's layers, for messages.
        given: values of variables, in place of reading them.
        shared: whether a function that the graph calls many times is one here too, or written out at each call.

    Attributes:
        outputs: what the function returns.
        reads: for each of the trained variables that the function uses, its value before the step.
        updates: what the function assigns to variables.

    Raises:
        ExportError: an operator has no lowering; the message names layer and operator.
    """

    def __init__(
        self,
        graph: Any,
        inputs: Sequence[tf.Tensor],
        trained: Sequence[tf.Variable],
        layers: Collection[str] = (),
        given: Mapping[Any, tf.Tensor] = MappingProxyType({}),
        shared: bool = True,
    ) -> None:
        self._graph = graph
        self._trained = {variable.ref() for variable in trained}
        self._layers = frozenset(layers)
        self._steps: list[Step] = []
        self._shares = shared
        self._fixed: dict[str, tuple[bool, ...]] = {}
        self._shared: dict[Any, SharedFunction] = {}
        self._values: dict[Any, tf.Tensor] = dict(given)
        self.reads: dict[Any, tf.Tensor] = dict(given)
        self.updates: dict[Any, tf.Tensor] = {}

        resources = {id(variable.handle): variable for variable in graph.variables}
        feeds: dict[str, Any] = {
            inner.name: Value(tensor, False) for inner, tensor in zip(graph.inputs, inputs, strict=False)
        }
        for outer, inner in graph.captures:
            feeds[inner.name] = (
                resources[id(outer)] if id(outer) in resources else Value(tf.constant(outer.numpy()), False)
            )
        results = self._run(graph, feeds, graph.outputs, "")
        self.outputs: tuple[tf.Tensor, ...] = tuple(value.tensor for value in results)

    def gradients(self, variables: Sequence[tf.Variable], by_output: tf.Tensor) -> list[Gradient]:
        """The gradients of the trained variables, from that of the first output; None for one without a part in it."""
        found: dict[int, Gradient] = {id(self.outputs[0]): by_output}
        propagate(self._steps, found)
        reads = [self.reads.get(variable.ref()) for variable in variables]
        return [None if read is None else found.get(id(read)) for read in reads]

    def _run(self, graph: Any, feeds: dict[str, Any], results: Sequence[tf.Tensor], scope: str) -> list[Any]:
        """Emit a graph; `feeds` and results are `Value`s, or variables in the place of their handles."""
        known = dict(feeds)
        if self._shares:
            self._fixed.update(fixed_inputs(graph))
        needed = _needed(graph, results)
        for op in graph.get_operations():
            if op.name not in needed or op.type in _IGNORED or (op.outputs and op.outputs[0].name in known):
                continue
            inputs = [known[tensor.name] for tensor in op.inputs]
            outputs = self._emit(op, inputs, scope)
            known.update((tensor.name, value) for tensor, value in zip(op.outputs, outputs, strict=True))
        return [known[tensor.name] for tensor in results]

    def _emit(self, op: tf.Operation, inputs: list[Any], scope: str) -> list[Any]:
        if op.type in CALLS:
            return self._call(op, inputs, scope)
        if inputs and isinstance(inputs[0], tf.Variable):
            done = self._variable(op, inputs)
            if done is not None:
                return done
            inputs = [self._read(inputs[0]), *inputs[1:]]
        varies = tuple(value.varies for value in inputs)
        call = Call(op, tuple(value.tensor for value in inputs), varies, self._layer(scope + op.name))
        with tf.name_scope(scope_of(scope + op.name)):
            return self._lower(call, scope_of(scope + op.name))

    def _call(self, op: tf.Operation, inputs: list[Any], scope: str) -> list[Any]:
        """A function: written out, or shared with other calls of it."""
        name, place = op.get_attr("f").name, scope_of(scope + op.name)
        fixed = self._fixed.get(name)

        def body(inputs: list[Any]) -> list[Any]:
            with self._graph.as_default():  # which knows the functions that others call, too
                definition = self._graph._get_function(name).cached_definition
                inner = function_def_to_graph.function_def_to_graph(definition)
            feeds = {tensor.name: value for tensor, value in zip(inner.inputs, inputs, strict=True)}
            return self._run(inner, feeds, inner.outputs, place)

        if fixed is None or any(isinstance(value, tf.Variable) for value in inputs):
            return body(inputs)

        def body_and_steps(inputs: list[Value]) -> tuple[list[Value], list[Step]]:
            before = len(self._steps)
            results = body(inputs)
            steps, self._steps[before:] = self._steps[before:], []
            return results, steps

        alike = (
            (value.varies, value.tensor.ref() if same else tuple(value.tensor.shape))
            for value, same in zip(inputs, fixed, strict=True)
        )
        key = (tf.compat.v1.get_default_graph(), name, *alike)
        if key not in self._shared:
            self._shared[key] = SharedFunction(body_and_steps, inputs, fixed)
        tensors = tuple(value.tensor for value in inputs)
        with tf.name_scope(place):
            results, pullback = self._shared[key](tensors)
        if any(result.varies for result in results):
            outputs = tuple(result.tensor for result in results)
            varies = tuple(value.varies for value in inputs)
            self._steps.append(Step(tensors, varies, outputs, pullback, place))
        return results

    def _lower(self, call: Call, scope: str) -> list[Any]:
        op, varies = call.op, call.varies
        if op.type in _WITHOUT_GRADIENT or (not any(varies) and op.type not in _ALWAYS_LOWERED):
            return [Value(tensor, False) for tensor in emit(call)]
        if op.type not in LOWERINGS:
            instead = _INSTEAD.get(op.type, "leave it out, or freeze the layers before it")
            raise ExportError(f"layer {call.layer!r}: no builtin gradient for the operator {op.type}; {instead}")
        lowered = LOWERINGS[op.type](call)
        for new, old in zip(lowered.outputs, op.outputs, strict=True):
            new.set_shape(old.shape)
        if lowered.pullback is None or not any(varies):
            return [Value(tensor, False) for tensor in lowered.outputs]
        # Outputs that are inputs passed on get a name of their own, so that gradients are not counted twice.
        outputs = tuple(tf.identity(t) if any(t is i for i in call.inputs) else t for t in lowered.outputs)
        self._steps.append(Step(call.inputs, varies, outputs, lowered.pullback, scope))
        return [Value(tensor, True) for tensor in outputs]

    def _variable(self, op: tf.Operation, inputs: list[Any]) -> list[Any] | None:
        """Reading and assigning; None for an operator that computes with the variable's value."""
        variable = inputs[0]
        if op.type == "ReadVariableOp":
            return [self._read(variable)]
        if op.type in ("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"):
            value = inputs[1].tensor
            if op.type != "AssignVariableOp":
                before = self._read(variable).tensor
                value = before + value if op.type == "AssignAddVariableOp" else before - value
            self.updates[variable.ref()] = self._values[variable.ref()] = value
            return []
        if op.type in ("Identity", "VarIsInitializedOp"):
            return [variable]
        return None

    def _read(self, variable: tf.Variable) -> Value:
        key = variable.ref()
        varies = key in self._trained
        if key not in self._values:
            if varies:
                self.reads[key] = self._values[key] = variable.read_value()
            else:
                with tf.init_scope():
                    value = variable.numpy()
                self._values[key] = tf.constant(value)
        return Value(self._values[key], varies and key not in self.updates)

    def _layer(self, name: str) -> str:
        parts = name.split("/")
        return next((part for part in reversed(parts) if part in self._layers), parts[-2] if parts[1:] else parts[0])


_ALWAYS_LOWERED = frozenset(
    {
        "DivNoNan", "Einsum", "Erf", "Expm1", "FusedBatchNormV3", "IdentityN", "Inv", "Log1p", "Reshape",
        "ResourceGather", "ReverseV2", "Selu", "SoftmaxCrossEntropyWithLogits", "Softplus",
        "SparseSoftmaxCrossEntropyWithLogits",
    }
)  # fmt: skip
"""Operators that TFLite lacks, or computes wrongly, whether or not they are trained."""


def scope_of(name: str) -> str:
    """The scope that an operator or a variable is in, absolute: what is made of it has such a name too."""
    return name[: name.rfind("/") + 1]


def _needed(graph: Any, results: Sequence[tf.Tensor]) -> set[str]:
    """Names of the operators that the results depend on, and of those that assign to variables."""
    pending = [tensor.op for tensor in results]
    pending += [op for op in graph.get_operations() if op.type.startswith("Assign") or op.type in CALLS]
    seen: set[str] = set()
    while pending:
        op = pending.pop()
        if op.name not in seen:
            seen.add(op.name)
            pending += [tensor.op for tensor in op.inputs]
    return seen
