"""`q2` and `q1` in TensorFlow, to the bit those of `device_runtime.codec.codebook`."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import tensorflow as tf

from device_runtime.codec.levels import BLOCK, blocks_of
from device_runtime.codec.randomness import ROUNDING
from device_runtime.codec.tables import KNOTS, LENGTHS, POINTS
from tff_sim.encoding.chunks import Chunks, by_chunk, chunks_of, shapes_of
from tff_sim.encoding.levels import EIGHTHS, INVERSES, choose, normalise, of_levels
from tff_sim.encoding.philox import words
from tff_sim.encoding.randomness import coarse, direction


class TurnedPoints:
    """Neighbours as one of 16 points that are turned at random.

    Args:
        dimensions: D, 2 or 4.
        size: n, the number of values.
    """

    def __init__(self, dimensions: int, size: int) -> None:
        self._dimensions = dimensions
        self._size = size
        self._points = np.array(POINTS[dimensions])
        # Whole numbers of 2**-21: exact in any order.
        self._halves = (np.square(self._points).sum(axis=1) / 2).astype(np.float32)

    def encode(self, chunks: Chunks, seed: Any) -> tuple[Chunks, Any]:
        """Each chunk's codes, levels and exponent; and whether all can be encoded.

        Codes are uint8 [chunks, groups], below 16, of groups that are missing in the last block too.
        """
        turned, start = self._turned(seed)
        # No seed is negative. But where TensorFlow's optimiser knows c, it takes (a + b) − c for a + (b − c).
        halves = tf.where(seed < 0, 0.0, self._halves)
        # Missing groups come last: what they draw, no other would.
        groups = BLOCK // self._dimensions
        shapes = [(rows, blocks * groups) for rows, blocks in shapes_of(self._size, BLOCK)]
        draws = chunks_of(coarse(seed, blocks_of(self._size) * groups, start), shapes)
        encoded = [
            by_chunk(lambda values, drawn: self._encode(values, drawn, turned, halves), *pair)
            for pair in zip(chunks, draws, strict=True)
        ]
        return [chunk for chunk, _ in encoded], tf.reduce_all([tf.reduce_all(fine) for _, fine in encoded])

    def add(self, chunks: Chunks, offsets: Chunks, encoded: Chunks, seed: Any, weight: Any) -> tuple[Chunks, Chunks]:
        """`weight` times the values added to the chunks of a `device_runtime.codec.Total`; its offsets stay."""
        turned, _ = self._turned(seed)
        added = []
        for chunk, new in zip(chunks, encoded, strict=True):
            scales = of_levels(EIGHTHS * weight, new["levels"], new["exponents"])
            points = tf.reshape(tf.gather(turned, tf.cast(new["codes"], tf.int32)), [*scales.shape, BLOCK])
            values = tf.reshape(points * scales[:, :, None], [chunk.shape[0], -1])
            added.append(chunk + values[:, : chunk.shape[1]])
        return added, offsets

    def _turned(self, seed: Any) -> tuple[Any, Any]:
        """The points turned by the update's rotation, float32 [16, D]; and the number of words that it took."""
        matrix, start = _rotation(seed, self._dimensions)
        turned = self._points[:, :1] * matrix[None, :, 0]
        for index in range(1, self._dimensions):
            turned += self._points[:, index : index + 1] * matrix[None, :, index]
        return tf.cast(turned, tf.float32), start

    def _encode(self, values: Any, drawn: Any, turned: Any, halves: Any) -> Any:
        values, power, fine = normalise(values)
        width, size = self._dimensions, values.shape[0]
        blocks = blocks_of(size)
        groups = tf.reshape(tf.pad(values, [[0, blocks * BLOCK - size]]), [-1, width])
        coordinates = tf.unstack(groups, axis=1)
        squared = coordinates[0] * coordinates[0]
        for coordinate in coordinates[1:]:
            squared += coordinate * coordinate
        lengths = tf.sqrt(squared)
        # TensorFlow takes subnormal squares for zeros. They make no difference but to a block of nothing else.
        largest = tf.reduce_max(tf.abs(tf.reshape(groups, [blocks, BLOCK])), axis=1)
        magnitudes = tf.maximum(
            tf.reduce_max(tf.reshape(lengths, [blocks, -1]), axis=1), tf.where(largest > 2.0**-75, 2.0**-60, 0.0)
        )
        levels, exponent, inverse = choose(magnitudes, power, INVERSES * np.float32(KNOTS))
        knots = tf.reshape(tf.reshape(lengths, [blocks, -1]) * inverse[:, None], [-1]) + drawn
        stretch = tf.gather(LENGTHS[width], tf.cast(tf.minimum(knots, KNOTS), tf.int32))
        # Not a plain quotient, which TensorFlow's optimiser would make a product with an approximate inverse root.
        stretch = tf.math.divide_no_nan(stretch, lengths)
        codes = _nearest([coordinate * stretch for coordinate in coordinates], turned, halves)
        return collections.OrderedDict(codes=codes, levels=levels, exponents=exponent), fine


def _nearest(coordinates: list[Any], turned: Any, halves: Any) -> Any:
    """The number of the nearest point, uint8 [groups]; of two that are as near, the first."""
    best, closest = None, None
    for number in range(turned.shape[0]):
        score = coordinates[0] * turned[number, 0]
        for coordinate, component in zip(coordinates[1:], tf.unstack(turned[number, 1:]), strict=True):
            score += coordinate * component
        score -= halves[number]
        if best is None:
            best, closest = score, tf.zeros_like(score, tf.uint8)
        else:
            # The latest that was closer has the largest number.
            closest = tf.maximum(closest, tf.cast(score > best, tf.uint8) * np.uint8(number))
            best = tf.maximum(best, score)
    return closest


def _rotation(seed: Any, dimensions: int) -> tuple[Any, Any]:
    """The update's rotation, float64 [D, D]; and the number of words that it took."""
    first, start = direction(seed, dimensions, 0)
    if dimensions == 2:
        upper = tf.bitwise.right_shift(words(seed, ROUNDING, 1, start)[0], np.uint64(63))
        sign = 1 - 2 * tf.cast(upper, tf.float64)
        return tf.stack([[first[0], -first[1] * sign], [first[1], first[0] * sign]]), start + 1
    second, start = direction(seed, dimensions, start)
    a, b, c, d = tf.unstack(first)
    e, f, g, h = tf.unstack(second)
    left = tf.stack([[a, -b, -c, -d], [b, a, -d, c], [c, d, a, -b], [d, -c, b, a]])
    right = tf.stack([[e, f, g, h], [-f, e, -h, g], [-g, h, e, -f], [-h, -g, f, e]])
    product = left[:, 0, None] * right[0]
    for index in range(1, dimensions):
        product += left[:, index, None] * right[index]
    return product, start
