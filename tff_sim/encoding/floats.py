"""`f32` and `f16` in TensorFlow, to the bit those of `device_runtime.codec.floats`."""

from __future__ import annotations

import collections
from typing import Any

import tensorflow as tf

from tff_sim.encoding.chunks import Chunks, by_chunk, chunks_of, shapes_of
from tff_sim.encoding.levels import log2_floor, normalise, power_of_two
from tff_sim.encoding.randomness import coarse

_LARGEST = 15  # float16 holds what is below 2**16; rounded up, a value below 2**15 stays there
_SMALLEST = -14  # exponent below which float16's neighbours come no closer
_DIGITS = 10


class Single:
    """Values as they are."""

    def encode(self, chunks: Chunks, seed: Any) -> tuple[Chunks, Any]:
        """The chunks; and whether all values are finite."""
        fine = tf.reduce_all([tf.reduce_all(tf.math.is_finite(chunk)) for chunk in chunks])
        return [collections.OrderedDict(codes=chunk) for chunk in chunks], fine

    def values(self, encoded: Chunks) -> Chunks:
        """The chunks, float32."""
        return [new["codes"] for new in encoded]


class Half:
    """Values as float16, over a power of two for each chunk.

    Args:
        size: n, the number of values.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def encode(self, chunks: Chunks, seed: Any) -> tuple[Chunks, Any]:
        """Each chunk's codes, float16, and the power of its unit, int32; and whether all can be encoded."""
        draws = chunks_of(coarse(seed, self._size), shapes_of(self._size))
        encoded = [by_chunk(_encoded_half, *pair) for pair in zip(chunks, draws, strict=True)]
        return [chunk for chunk, _ in encoded], tf.reduce_all([tf.reduce_all(fine) for _, fine in encoded])

    def values(self, encoded: Chunks) -> Chunks:
        """The chunks, float32."""
        return [tf.cast(new["codes"], tf.float32) * power_of_two(new["exponents"])[:, None] for new in encoded]


def _encoded_half(values: Any, drawn: Any) -> Any:
    values, power, fine = normalise(values)
    values *= 2.0**_LARGEST
    # Distance of float16's neighbours around each value, as a power of two.
    spacing = tf.maximum(log2_floor(tf.abs(values)), _SMALLEST) - _DIGITS
    codes = tf.floor(values * power_of_two(-spacing) + drawn) * power_of_two(spacing)
    return collections.OrderedDict(codes=tf.cast(codes, tf.float16), exponents=power - _LARGEST), fine
