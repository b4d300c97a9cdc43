"""The words of Philox 4x64-10 (Salmon et al. 2011) in TensorFlow, those of `device_runtime.codec.randomness.Draws`.

Sums, products, shifts and exclusive ors of uint64 only, all counters at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

_ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_SCALAR, _VECTOR = tf.TensorSpec([], tf.uint64), tf.TensorSpec([None], tf.uint64)


def words(seed: Any, stream: int, count: int, start: Any = 0) -> Any:
    """Words of a stream, uint64 [count].

    Args:
        seed: first half of the key, an integer scalar that is not negative.
        stream: second half: `ROUNDING`, `ROTATION` or `OVERLAP` of `device_runtime.codec.randomness`.
        count: how many.
        start: how many words of the stream come before them; an integer or a scalar.
    """
    start = tf.cast(start, tf.int64)
    skipped = start % 4
    # As many counters as any start may need; the first counter is 1.
    counters = tf.cast(start // 4 + tf.range(1, -(-(count + 3) // 4) + 1, dtype=tf.int64), tf.uint64)
    block = _words_of(counters, tf.cast(seed, tf.uint64), tf.constant(stream, tf.uint64))
    return tf.ensure_shape(block[skipped : skipped + count], [count])


@tf.function(input_signature=[_VECTOR, _SCALAR, _SCALAR], autograph=False)  # traced once
def _words_of(counters: Any, *key: Any) -> Any:
    """The four words of each counter, uint64 [4·counters]; the counter's other three words are 0."""
    zero = tf.zeros_like(counters)
    first, second, third, fourth = counters, zero, zero, zero
    for number in range(_ROUNDS):
        keys = [part + np.uint64(number * weyl % 2**64) for part, weyl in zip(key, _WEYL, strict=True)]
        upper, lower = _product(_MULTIPLIERS[0], first)
        other_upper, other_lower = _product(_MULTIPLIERS[1], third)
        first, second = other_upper ^ second ^ keys[0], other_lower
        third, fourth = upper ^ fourth ^ keys[1], lower
    return tf.reshape(tf.stack([first, second, third, fourth], axis=1), [-1])


def _product(constant: int, words: Any) -> tuple[Any, Any]:
    """The upper and the lower 64 bits of products with 128, from the products of their halves."""
    low, high = np.uint64(constant & 0xFFFFFFFF), np.uint64(constant >> 32)
    words_low, words_high = words & _LOW, _shifted(words)
    cross = words_low * high
    # At most (2**32 − 1)**2 + 2·(2**32 − 1): nothing is carried over.
    middle = words_high * low + (cross & _LOW) + _shifted(words_low * low)
    return words_high * high + _shifted(cross) + _shifted(middle), words * np.uint64(constant)


def _shifted(words: Any) -> Any:
    return tf.bitwise.right_shift(words, _HALF)
