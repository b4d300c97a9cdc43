"""How much memory a training step needs beside the weights: what a device asks before it loads an artifact."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema

from device_runtime.bundle import Footprint
from export.flatbuffer import unpack
from export.single_operator import inputs_of

_BATCHES = (8, 16)
_BYTES = 4  # of an element: float32 or int32
_ALIGNMENT = 64  # an interpreter's tensors begin at multiples of it


def step_footprint(artifact: bytes) -> Footprint:
    """The bytes of the tensors that a ``train`` step keeps at once, at most, as a straight line of the batch size.

    An interpreter keeps a tensor from the operator that makes it to the last one that takes it. What its plan loses to
    gaps, and what its kernels need for themselves, comes on top.
    """
    model = unpack(artifact)
    signature = next(one for one in model.signatureDefs if one.signatureKey == b"train")
    index = int(signature.subgraphIndex)
    interpreter = tf.lite.Interpreter(
        model_content=artifact,
        experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    few, many = (_most_kept(interpreter, model, index, batch) for batch in _BATCHES)
    each = max(-(-(many - few) // (_BATCHES[1] - _BATCHES[0])), 0)
    return Footprint(max(few - _BATCHES[0] * each, 0), each)


def _most_kept(interpreter: Any, model: Any, index: int, batch: int) -> int:
    graph = model.subgraphs[index]
    inner = interpreter._interpreter  # the public interface allocates the first subgraph only
    for tensor in map(int, graph.inputs):
        shape = interpreter._get_tensor_details(tensor, index)["shape_signature"]
        inner.ResizeInputTensor(tensor, np.where(shape < 0, batch, shape).astype(np.int32), False, index)
    inner.AllocateTensors(index)
    last: dict[int, int] = dict.fromkeys(map(int, graph.outputs), len(graph.operators))
    for position, operator in enumerate(graph.operators):
        for tensor in inputs_of(operator):
            last[tensor] = max(last.get(tensor, 0), position)

    def size(tensor: int) -> int:
        buffer = model.buffers[graph.tensors[tensor].buffer].data
        if graph.tensors[tensor].type == schema.TensorType.RESOURCE or (buffer is not None and len(buffer)):
            return 0
        elements = int(np.prod(inner.TensorSize(tensor, index)))
        return -(-_BYTES * elements // _ALIGNMENT) * _ALIGNMENT

    kept = {int(tensor): size(int(tensor)) for tensor in graph.inputs}
    total = most = sum(kept.values())
    ends: dict[int, list[int]] = {}
    for tensor, position in last.items():
        ends.setdefault(position, []).append(tensor)
    for position, operator in enumerate(graph.operators):
        for tensor in map(int, operator.outputs):
            kept[tensor] = size(tensor)
            total += kept[tensor]
        most = max(most, total)
        for tensor in (*ends.get(position, ()), *(int(t) for t in operator.outputs if int(t) not in last)):
            total -= kept.pop(tensor, 0)
    return most
