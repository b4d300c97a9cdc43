"""`q8` and `q4` in TensorFlow, to the bit those of `device_runtime.codec.scalar`."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import tensorflow as tf

from device_runtime.codec.levels import BLOCK, blocks_of
from tff_sim.encoding.chunks import Chunks, by_chunk, chunks_of, shapes_of
from tff_sim.encoding.levels import EIGHTHS, INVERSES, choose, normalise, of_levels
from tff_sim.encoding.randomness import coarse

_HALF = 2**15  # in 2**-16


class DitheredLevels:
    """Every value as one of 2**bits levels, shifted at random.

    Args:
        bits: 8 or 4.
        size: n, the number of values.
    """

    def __init__(self, bits: int, size: int) -> None:
        self._lowest = -(2 ** (bits - 1))
        self._half = np.float32((2**bits - 1) / 2)
        # The codes of `q4` start at 0 on the wire.
        self._first = self._lowest if bits == 4 else 0
        self._size = size

    def encode(self, chunks: Chunks, seed: Any) -> tuple[Chunks, Any]:
        """Each chunk's codes, levels and exponent; and whether all can be encoded.

        Codes are int8 [chunks, 32·blocks], −128 to 127 or −8 to 7, of values that are missing at the end too.
        """
        encoded = [by_chunk(self._encode, *pair) for pair in zip(chunks, self._draws(seed, _HALF), strict=True)]
        return [chunk for chunk, _ in encoded], tf.reduce_all([tf.reduce_all(fine) for _, fine in encoded])

    def add(self, chunks: Chunks, offsets: Chunks, encoded: Chunks, seed: Any, weight: Any) -> tuple[Chunks, Chunks]:
        """`weight` times the values added to the chunks and offsets of a `device_runtime.codec.Total`."""
        # In float64, where it makes no difference if a division becomes the product with the inverse: a quotient of 24
        # bits by 8 is not as near to the middle between two float32.
        eighths = tf.cast(tf.cast(EIGHTHS * weight, tf.float64) / self._half.astype(np.float64), tf.float32)
        added, shifted = [], []
        for chunk, offset, new, drawn in zip(chunks, offsets, encoded, self._draws(seed), strict=True):
            steps = of_levels(eighths, new["levels"], new["exponents"])
            codes = tf.reshape(tf.cast(new["codes"], tf.float32) - float(self._first), [-1, BLOCK, steps.shape[1]])
            values = tf.reshape(codes * steps[:, None, :], [chunk.shape[0], -1])
            added.append(chunk + values[:, : chunk.shape[1]])
            shifted.append(offset + (1 - drawn + float(self._first)) * steps)
        return added, shifted

    def _draws(self, seed: Any, shift: int = 0) -> Chunks:
        return chunks_of(coarse(seed, blocks_of(self._size), shift=shift), shapes_of(self._size, BLOCK))

    def _encode(self, values: Any, shift: Any) -> Any:
        values, power, fine = normalise(values)
        columns = shift.shape[0]
        matrix = tf.reshape(tf.pad(values, [[0, BLOCK * columns - values.shape[0]]]), [BLOCK, columns])
        magnitudes = tf.reduce_max(tf.abs(matrix), axis=0)
        levels, exponent, inverse = choose(magnitudes, power, INVERSES * self._half)
        codes = tf.floor(matrix * inverse + shift)
        # Rounding may carry the largest over the edge.
        codes = tf.clip_by_value(codes, float(self._lowest), float(-1 - self._lowest))
        codes = tf.reshape(tf.cast(codes, tf.int8), [-1])
        return collections.OrderedDict(codes=codes, levels=levels, exponents=exponent), fine
