"""Constants that stand in a TFLite file many times, such as frozen layers' weights, once for each signature."""

from __future__ import annotations

from typing import Any

from tensorflow.lite.python import schema_py_generated as schema

from export.flatbuffer import pack, unpack

_WORTH_IT = 0.01
"""Share of the file that has to be gained: to write thousands of operators again takes seconds."""


def compact(artifact: bytes) -> bytes:
    """The same TFLite file with each constant stored once, where that makes it notably smaller."""
    if _repeated(artifact) < _WORTH_IT * len(artifact):
        return artifact
    model = unpack(artifact)
    share_constants(model)
    return pack(model, len(artifact))


def _repeated(artifact: bytes) -> int:
    """How many bytes of constants stand in the file before already."""
    model = schema.Model.GetRootAsModel(artifact, 0)
    buffers = [model.Buffers(index) for index in range(model.BuffersLength())]
    constants = [buffer.DataAsNumpy().tobytes() for buffer in buffers if buffer.DataLength()]
    return sum(map(len, constants)) - sum(map(len, set(constants)))


def share_constants(model: Any) -> None:
    """Give a `schema.ModelT` one buffer for equal bytes; those that nothing refers to any more become empty."""
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
