"""What a codec draws from the words of a stream, as `device_runtime.codec.randomness.Draws` does."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from device_runtime.codec.randomness import ROUNDING
from tff_sim.encoding.philox import words

# The signs of a byte's bits, the lowest bit first: float32 [256, 8].
_SIGNS = 1 - 2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.float32)
_TRIES = 8  # points that are drawn at a time; in four dimensions, one draw in twenty is not enough


def coarse(seed: Any, count: int, start: Any = 0, shift: int = 0) -> Any:
    """The update's numbers from 0 to below 1 with 16 bits, float32 [count], after `start` words; less `shift`/2**16."""
    quarters = tf.bitcast(words(seed, ROUNDING, -(-count // 4), start), tf.uint16)
    return tf.cast(tf.cast(tf.reshape(quarters, [-1])[:count], tf.int32) - shift, tf.float32) * np.float32(2**-16)


def signs(round_number: Any, stream: int, count: int) -> Any:
    """+1 or −1, float32 [count]: −1 where the bit of a word is set, the lowest bit first."""
    octets = tf.bitcast(words(round_number, stream, -(-count // 64)), tf.uint8)
    return tf.reshape(tf.gather(_SIGNS, tf.cast(tf.reshape(octets, [-1]), tf.int32)), [-1])[:count]


def direction(seed: Any, dimensions: int, start: Any) -> tuple[Any, Any]:
    """A unit vector, float64 [dimensions], of the update's words after `start`; and how many come before the next one.

    Points outside of the ball, or within 2**-10 of its centre, are drawn again.
    """

    def try_again(start: Any, _point: Any, _found: Any) -> tuple[Any, Any, Any]:
        drawn = tf.reshape(words(seed, ROUNDING, _TRIES * dimensions, start), [_TRIES, dimensions])
        # Whole numbers below 2**53, twice over 2**53, less 1: exact.
        points = tf.cast(tf.bitwise.right_shift(drawn, np.uint64(11)), tf.float64) * 2.0**-52 - 1.0
        squared = _squared(points, dimensions)
        good = (squared >= 2.0**-20) & (squared < 1.0)
        last = tf.reduce_min(tf.where(good, tf.range(_TRIES), _TRIES - 1))
        return start + tf.cast((last + 1) * dimensions, tf.int64), points[last], good[last]

    start, point, _ = tf.while_loop(
        lambda _start, _point, found: ~found,
        try_again,
        (tf.cast(start, tf.int64), tf.zeros(dimensions, tf.float64), tf.constant(False)),
    )
    # Not a plain quotient, which TensorFlow's optimiser would make a product with an approximate inverse root.
    return tf.math.divide_no_nan(point, tf.sqrt(_squared(point, dimensions))), start


def _squared(points: Any, dimensions: int) -> Any:
    """The squared length, added from the left."""
    total = points[..., 0] * points[..., 0]
    for index in range(1, dimensions):
        total += points[..., index] * points[..., index]
    return total
