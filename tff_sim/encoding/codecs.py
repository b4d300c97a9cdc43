"""The codecs by name."""

from __future__ import annotations

from typing import Any, Protocol

from device_runtime.codec import codec_named
from tff_sim.encoding.chunks import Chunks
from tff_sim.encoding.codebook import TurnedPoints
from tff_sim.encoding.floats import Half, Single
from tff_sim.encoding.scalar import DitheredLevels

_BITS = {"q8": 8, "q4": 4}
_DIMENSIONS = {"q2": 2, "q1": 4}


class PlainCoder(Protocol):
    """Encodes vectors of one size as they are."""

    def encode(self, chunks: Chunks, seed: Any) -> tuple[Chunks, Any]:
        """Chunks of a vector, encoded: an ordered mapping of tensors each; and whether a device would encode it."""
        ...

    def values(self, encoded: Chunks) -> Chunks:
        """What is decoded, float32."""
        ...


class RotatedCoder(Protocol):
    """Encodes vectors of one size that are rotated before."""

    def encode(self, chunks: Chunks, seed: Any) -> tuple[Chunks, Any]:
        """Chunks of a vector, encoded: an ordered mapping of tensors each; and whether a device would encode it."""
        ...

    def add(self, chunks: Chunks, offsets: Chunks, encoded: Chunks, seed: Any, weight: Any) -> tuple[Chunks, Chunks]:
        """`weight`, float32, times the values added to what `device_runtime.codec.Total` holds."""
        ...


def is_rotated(codec: str) -> bool:
    """Whether it has a `RotatedCoder`; `InputError` where there is no codec of this name."""
    return codec_named(codec).rotated


def plain_coder(codec: str, size: int) -> PlainCoder:
    """The coder of `f32` or `f16` for vectors of this size."""
    return Single() if codec == "f32" else Half(size)


def rotated_coder(codec: str, size: int) -> RotatedCoder:
    """The coder of `q8`, `q4`, `q2` or `q1` for vectors of this size."""
    if codec in _BITS:
        return DitheredLevels(_BITS[codec], size)
    return TurnedPoints(_DIMENSIONS[codec], size)
