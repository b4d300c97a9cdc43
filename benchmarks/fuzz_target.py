"""What must hold of any bytes that claim to be an encoded update: tried by `benchmarks.fuzz`, and shortly by the tests.

Any bytes give an update or an `UpdateError` with a documented reason. There is no other exception, no warning, no value
that is not finite where the update says that all are, and no more memory than the manifest's tensors answer for.
"""

from __future__ import annotations

import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Sequence

import numpy as np

from device_runtime import codec
from device_runtime.errors import UpdateError
from device_runtime.tensors import TensorSpec
from device_runtime.update import ClientUpdate

MODEL = "0123456789abcdef" * 2
REASONS = ("truncated", "checksum", "format", "model", "shape")
SPARE = 700_000  # bytes: tables of a codec, and what the work on a chunk of 65,536 values takes, whatever the model

MODELS: tuple[tuple[TensorSpec, ...], ...] = tuple(
    tuple(TensorSpec(f"t{number}", shape) for number, shape in enumerate(shapes))
    for shapes in (
        [()],
        [(3, 2), (1,)],
        [(33,)],
        [(10, 10), (10,), (27, 33)],
        [(65_536,)],
        [(300, 220), (5_077,)],
    )
)
"""From one value to two chunks."""


def sealed(content: bytes) -> bytes:
    """Content with the checksum that belongs to it."""
    return content + struct.pack("<I", zlib.crc32(content))


def fitted(content: bytes, specs: Sequence[TensorSpec]) -> bytes:
    """Content cut or filled up to the length that its own header asks for, where that can be read."""
    if len(content) < 40:
        return content
    header, offset = codec.UpdateHeader.unpack(memoryview(content), MODEL)
    names = {one.number: one for one in map(codec.codec_named, codec.CODECS)}
    if header.codec not in names:
        return content
    end = offset + names[header.codec].size(codec.values_of(specs))
    return content[:end].ljust(end, b"\0")


def survive(data: bytes, specs: Sequence[TensorSpec]) -> str:
    """Do with the bytes all that a server does.

    Returns:
        The codec of an update, or the reason of its refusal.

    Raises:
        AssertionError: something does not hold.
    """
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = _outcome(data, specs)
    if tracemalloc.is_tracing():
        taken = tracemalloc.get_traced_memory()[1] - before
        allowed = 2 * 4 * codec.values_of(specs) + SPARE  # the total, and at most as much again
        assert taken <= allowed, f"{taken} bytes of memory, allowed {allowed}"
    return outcome


def _outcome(data: bytes, specs: Sequence[TensorSpec]) -> str:
    try:
        update = codec.read_update(data, specs, MODEL)
    except UpdateError as error:
        assert error.reason in REASONS, error.reason
        return error.reason
    finite = update.finite
    values = update.values()
    assert values.dtype == np.float32
    assert values.shape == (codec.values_of(specs),)
    if finite:
        assert np.isfinite(values).all(), "it says that all values are finite"
    del values
    total = codec.Total(codec.values_of(specs))
    for factor in (1, update.header.weight):
        update.add_to(total, factor)
    del total
    decoded = codec.decode(data, specs, MODEL)
    assert isinstance(decoded, ClientUpdate)
    shapes = [tuple(size for size in spec.shape if size is not None) for spec in specs]
    assert [tensor.shape for tensor in decoded.delta] == shapes
    return update.codec.name
