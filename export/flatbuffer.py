"""TFLite files as trees of objects, to be read and changed, and back."""

from __future__ import annotations

from typing import Any

import flatbuffers
from tensorflow.lite.python import schema_py_generated as schema

IDENTIFIER = b"TFL3"


def unpack(artifact: bytes) -> Any:
    """A `schema.ModelT`."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(artifact, 0))


def pack(model: Any, size: int = 1024) -> bytes:
    """The file of a `schema.ModelT`; `size` is where the buffer starts to grow from."""
    builder = flatbuffers.Builder(size)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def subgraph_index(model: Any, signature: str) -> int:
    """Which subgraph a signature runs."""
    return next(int(s.subgraphIndex) for s in model.signatureDefs if s.signatureKey == signature.encode())
