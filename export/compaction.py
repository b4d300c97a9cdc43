"""A training artifact without what a device does not need in it.

TensorFlow stores each variable's initial value, and has it assigned on loading. A device sets the weights itself,
from ``weights.safetensors`` or from the server, so the artifact would hold the model a second time, and its
optimiser's state in zeros besides. And constants, such as frozen layers' weights, are stored once for each
signature that uses them.
"""

from __future__ import annotations

from typing import Any

from tensorflow.lite.python import schema_py_generated as schema

from export.flatbuffer import unpack


def compacted(artifact: bytes) -> Any:
    """The same TFLite file, as a `schema.ModelT`, without initial values of variables, with each constant stored once.

    A variable that is read before it was assigned is an error of the interpreter.
    """
    model = unpack(artifact)
    initializers = {
        subgraph.operators[position].builtinOptions.initSubgraphIndex
        for subgraph in model.subgraphs
        for position in _calls_once(model, subgraph)
    }
    for index, subgraph in enumerate(model.subgraphs):
        calls = set(_calls_once(model, subgraph))
        subgraph.operators = (
            []
            if index in initializers
            else [operator for position, operator in enumerate(subgraph.operators) if position not in calls]
        )
        if index in initializers:
            subgraph.tensors, subgraph.inputs, subgraph.outputs = [], [], []
    _share_buffers(model)
    return model


def _calls_once(model: Any, subgraph: Any) -> list[int]:
    once = schema.BuiltinOperator.CALL_ONCE
    return [
        position
        for position, operator in enumerate(subgraph.operators)
        if model.operatorCodes[operator.opcodeIndex].builtinCode == once
    ]


def _share_buffers(model: Any) -> None:
    """One buffer for equal bytes; those that nothing refers to any more become empty."""
    place: dict[bytes, int] = {}
    used: set[int] = {0, *(metadata.buffer for metadata in model.metadata or [])}
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            data = model.buffers[tensor.buffer].data
            if data is not None and len(data):
                tensor.buffer = place.setdefault(bytes(data), tensor.buffer)
            used.add(tensor.buffer)
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None
