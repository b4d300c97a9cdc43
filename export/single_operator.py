"""One operator of a TFLite file as a file of its own, so that it can be timed alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
from tensorflow.lite.python import schema_py_generated as schema

from export.flatbuffer import pack

_VERSION = 3


def is_constant(model: Any, tensor: Any) -> bool:
    """Whether the file holds the tensor's values."""
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def extract(model: Any, subgraph: Any, operator: Any) -> bytes:
    """The operator in a file of its own, with the shapes of the original: what is open there, is open here.

    Args:
        model, subgraph, operator: in the flatbuffer's object form.

    Returns:
        A TFLite file; its inputs are those of the operator that are no constants, in their order.
    """
    single = schema.ModelT()
    single.version = _VERSION
    single.operatorCodes = [model.operatorCodes[operator.opcodeIndex]]
    single.buffers = [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.tensors, graph.inputs = [], []
    places: dict[int, int] = {}
    for index in (*inputs_of(operator), *map(int, operator.outputs)):
        if index in places:
            continue
        original = subgraph.tensors[index]
        tensor = schema.TensorT()
        tensor.__dict__.update(original.__dict__)
        tensor.buffer = 0
        if is_constant(model, original):
            tensor.buffer = len(single.buffers)
            single.buffers.append(model.buffers[original.buffer])
        elif index not in operator.outputs:
            graph.inputs.append(len(graph.tensors))
        places[index] = len(graph.tensors)
        graph.tensors.append(tensor)
    alone = schema.OperatorT()
    alone.__dict__.update(operator.__dict__)
    alone.opcodeIndex = 0
    alone.inputs = [places.get(int(index), -1) for index in operator.inputs]
    alone.outputs = [places[int(index)] for index in operator.outputs]
    graph.operators, graph.outputs = [alone], list(alone.outputs)
    single.subgraphs = [graph]
    return pack(single)


def inputs_of(operator: Any) -> list[int]:
    """Indices of the inputs that are given."""
    return [int(index) for index in operator.inputs if index >= 0]


def key_of(model: Any, subgraph: Any, operator: Any, shapes: Mapping[int, tuple[int, ...]]) -> tuple[Any, ...]:
    """Equal for operators that take the same time: same kind, options, types, shapes and constants."""

    def described(index: int) -> tuple[Any, ...]:
        tensor = subgraph.tensors[index]
        data: npt.NDArray[Any] | None = model.buffers[tensor.buffer].data
        # A large constant is a weight: its values don't matter. A small one can be an axis or a shape.
        small = data is not None and 0 < len(data) <= 256
        return (
            shapes[index],
            tensor.type,
            is_constant(model, tensor),
            bytes(data) if small and data is not None else b"",
        )

    options = operator.builtinOptions
    return (
        operator.opcodeIndex,
        repr(sorted(vars(options).items())) if options is not None else "",
        tuple(described(index) for index in inputs_of(operator)),
        tuple((shapes[int(index)]) for index in operator.outputs),
    )
