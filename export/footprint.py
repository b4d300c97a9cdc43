"""How much memory a training step needs beside the weights: what a device asks before it loads an artifact."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema

from device_runtime.bundle import Footprint

_BATCHES = (8, 16)
_BYTES = 4  # of an element: float32 or int32
_ALIGNMENT = 64  # an interpreter's tensors begin at multiples of it


def step_footprint(artifact: bytes) -> Footprint:
    """The bytes of the tensors that a ``train`` step keeps at once, at most, as a straight line of the batch size.

    An interpreter keeps a tensor from the operator that makes it to the last one that takes it. What its plan loses to
    gaps, and what its kernels need for themselves, comes on top.
    """
    graph = _Graph(artifact)
    few, many = map(graph.most_kept, _BATCHES)
    each = max(-(-(many - few) // (_BATCHES[1] - _BATCHES[0])), 0)
    return Footprint(max(few - _BATCHES[0] * each, 0), each)


class _Graph:
    """The ``train`` signature of an artifact, read in place: an object for each of its parts would take seconds."""

    def __init__(self, artifact: bytes) -> None:
        model = schema.Model.GetRootAsModel(artifact, 0)
        signatures = map(model.SignatureDefs, range(model.SignatureDefsLength()))
        self._index = int(next(one for one in signatures if one.SignatureKey() == b"train").SubgraphIndex())
        graph = model.Subgraphs(self._index)
        self._inputs, self._outputs = _numbers(graph.InputsAsNumpy()), _numbers(graph.OutputsAsNumpy())
        operators = list(map(graph.Operators, range(graph.OperatorsLength())))
        self._takes = [_numbers(operator.InputsAsNumpy()) for operator in operators]
        self._makes = [_numbers(operator.OutputsAsNumpy()) for operator in operators]
        tensors = map(graph.Tensors, range(graph.TensorsLength()))
        self._free = {  # what takes no room: handles of variables, and constants
            number
            for number, tensor in enumerate(tensors)
            if tensor.Type() == schema.TensorType.RESOURCE or model.Buffers(tensor.Buffer()).DataLength() > 0
        }
        self._interpreter = tf.lite.Interpreter(
            model_content=artifact,
            experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )

    def most_kept(self, batch: int) -> int:
        """Bytes that are kept at once, at most, in a step with so many examples."""
        inner = self._interpreter._interpreter  # the public interface allocates the first subgraph only
        for tensor in self._inputs:
            shape = self._interpreter._get_tensor_details(tensor, self._index)["shape_signature"]
            inner.ResizeInputTensor(tensor, np.where(shape < 0, batch, shape).astype(np.int32), False, self._index)
        inner.AllocateTensors(self._index)

        def size(tensor: int) -> int:
            if tensor in self._free:
                return 0
            elements = math.prod(map(int, inner.TensorSize(tensor, self._index)))
            return -(-_BYTES * elements // _ALIGNMENT) * _ALIGNMENT

        last = {tensor: position for position, takes in enumerate(self._takes) for tensor in takes}
        last.update(dict.fromkeys(self._outputs, len(self._takes)))
        kept = {tensor: size(tensor) for tensor in self._inputs}
        total = most = sum(kept.values())
        for position, (takes, makes) in enumerate(zip(self._takes, self._makes, strict=True)):
            made = {tensor: size(tensor) for tensor in makes}
            kept.update(made)
            total += sum(made.values())
            most = max(most, total)
            over = {tensor for tensor in (*takes, *makes) if last.get(tensor, position) == position}
            total -= sum(kept.pop(tensor, 0) for tensor in over)
        return most


def _numbers(values: Any) -> list[int]:
    """The tensors of a list in the file: an optional one that is not given is −1 there, an empty list is 0."""
    return [] if isinstance(values, int) else [int(value) for value in values if value >= 0]
