"""An artifact whose variables have numbers, and two signatures that take one.

An interpreter keeps the inputs and outputs of every signature that was ever called. One that takes all weights at once,
and one that gives them, would hold the model twice more. `write_variable` and `read_variable` move one variable at a
time. TensorFlow has no such function, because its variables are no values; in TensorFlow Lite the handle of a variable
is a 32-bit integer like any other.
"""

from __future__ import annotations

import struct
from typing import Any

from tensorflow.lite.python import schema_py_generated as schema

from device_runtime.bundle import Signature
from device_runtime.tensors import TensorSpec

VARIABLES = "variables"
"""The signature of a converted file whose outputs are the variables' values, each named by its number."""

_NUMBER, _VALUES = TensorSpec("number", (), "int32"), TensorSpec("values", (None,))
SIGNATURES = {
    "write_variable": Signature((_NUMBER, _VALUES), ()),
    "read_variable": Signature((_NUMBER,), (_VALUES,)),
}
"""What takes the place of `VARIABLES`."""


def number_variables(model: Any) -> None:
    """Give the variables of a `schema.ModelT` their numbers, and put `SIGNATURES` in the place of `VARIABLES`."""
    given = next(one for one in model.signatureDefs if one.signatureKey == VARIABLES.encode())
    graph = model.subgraphs[given.subgraphIndex]
    names = {int(op.outputs[0]): op.builtinOptions.sharedName for op in graph.operators if _is(model, op, "VAR_HANDLE")}
    read = {int(op.outputs[0]): names[int(op.inputs[0])] for op in graph.operators if _is(model, op, "READ_VARIABLE")}
    numbers = {read[int(one.tensorIndex)]: int(one.name) for one in given.outputs if one.name.isdigit()}
    constants: dict[int, int] = {}  # number -> buffer
    for subgraph in model.subgraphs:
        kept = []
        for op in subgraph.operators:
            if _is(model, op, "VAR_HANDLE"):
                # The anchors come after the weights and the optimiser's state.
                number = numbers.setdefault(op.builtinOptions.sharedName, len(numbers))
                if number not in constants:
                    constants[number] = _constant(model, number)
                # It stays a resource by type: that tells an interpreter in which order its operators have to be.
                subgraph.tensors[op.outputs[0]].buffer = constants[number]
            else:
                kept.append(op)
        subgraph.operators = kept
    _write(model, graph)
    given.signatureKey, given.outputs = b"write_variable", []
    given.inputs = [_named("number", 0), _named("values", 1)]
    _read(model)


def _write(model: Any, graph: Any) -> None:
    """Make the subgraph one that assigns."""
    graph.tensors = [_tensor("number", schema.TensorType.INT32, []), _tensor("values", schema.TensorType.FLOAT32, [1])]
    graph.tensors[1].shapeSignature = [-1]
    graph.inputs, graph.outputs = [0, 1], []
    graph.operators = [_operator(model, "ASSIGN_VARIABLE", [0, 1], [])]


def _read(model: Any) -> None:
    graph = schema.SubGraphT()
    graph.name = b"read_variable"
    graph.tensors = [
        _tensor("number", schema.TensorType.INT32, []),
        _tensor("variable", schema.TensorType.FLOAT32, None),  # of any shape
        _tensor("flat", schema.TensorType.INT32, [1]),
        _tensor("values", schema.TensorType.FLOAT32, [1]),
    ]
    graph.tensors[2].buffer = _constant(model, -1)
    graph.tensors[3].shapeSignature = [-1]
    graph.inputs, graph.outputs = [0], [3]
    graph.operators = [_operator(model, "READ_VARIABLE", [0], [1]), _operator(model, "RESHAPE", [1, 2], [3])]
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = b"read_variable", len(model.subgraphs)
    signature.inputs, signature.outputs = [_named("number", 0)], [_named("values", 3)]
    model.subgraphs.append(graph)
    model.signatureDefs.append(signature)


def _is(model: Any, operator: Any, name: str) -> bool:
    return bool(model.operatorCodes[operator.opcodeIndex].builtinCode == getattr(schema.BuiltinOperator, name))


def _operator(model: Any, name: str, inputs: list[int], outputs: list[int]) -> Any:
    code = getattr(schema.BuiltinOperator, name)
    index = next((i for i, one in enumerate(model.operatorCodes) if one.builtinCode == code), None)
    if index is None:
        index, added = len(model.operatorCodes), schema.OperatorCodeT()
        added.builtinCode, added.deprecatedBuiltinCode, added.version = code, min(code, 127), 1
        model.operatorCodes.append(added)
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = index, inputs, outputs
    return operator


def _constant(model: Any, value: int) -> int:
    """The place of a buffer that holds an int32."""
    buffer = schema.BufferT()
    buffer.data = struct.pack("<i", value)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _tensor(name: str, kind: int, shape: list[int] | None) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.type, tensor.shape, tensor.buffer = name.encode(), kind, shape, 0
    return tensor


def _named(name: str, index: int) -> Any:
    named = schema.TensorMapT()
    named.name, named.tensorIndex = name.encode(), index
    return named
