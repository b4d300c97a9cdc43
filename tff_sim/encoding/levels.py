"""The scale of each block of 32 values in TensorFlow, to the bit that of `device_runtime.codec.levels`.

A scale is an eighth, one of eight constants, times a power of two. What is computed of a scale is computed of the
eighth alone: a power of two more or less changes no digit of a product or quotient. So nothing depends on the optimiser
of TensorFlow's graphs, which multiplies by reciprocals where a program divides by constants.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from device_runtime.codec.levels import scales_of

EIGHTHS = np.array([scales_of(exponent)[-1] for exponent in range(8)], np.float32)
INVERSES = np.float32(1) / EIGHTHS
_TOP = 15
_LARGEST = 2.0**60
_FRACTION = 0x7FFFFF  # the bits of a float32 below its exponent
_BIAS = 127


def normalise(values: Any) -> tuple[Any, Any, Any]:
    """A chunk over 2**p, which brings its largest magnitude to between ½ and 1; p, int32; whether it can be encoded.

    A chunk that can't be, because a value is not finite or 2**60 and above, becomes zeros, and p is 0.
    """
    fine = tf.reduce_all(tf.abs(values) < _LARGEST)
    largest = tf.reduce_max(tf.abs(values))
    there = fine & (largest >= 1 / _LARGEST)
    power = tf.where(there, log2_floor(largest) + 1, 0)
    values *= power_of_two(-power)
    return tf.where(there & (tf.abs(values) >= 2.0**-100), values, 0), power, fine


def choose(magnitudes: Any, power: Any, inverses: Any) -> tuple[Any, Any, Any]:
    """A chunk's levels, uint8 [blocks]; its exponent, int32; and `inverses` for each block's scale, float32 [blocks].

    Args:
        magnitudes: the largest of each block, float32 [blocks], ≥ 0, of a chunk that `normalise` has divided.
        power: what `normalise` gave.
        inverses: for each of the eighths, one over it times what is wanted; 0 is given for a scale of 0.
    """
    largest = tf.reduce_max(magnitudes)
    # From 1 to below 2.
    digits = tf.bitcast(tf.bitcast(largest, tf.int32) & _FRACTION | _BIAS << 23, tf.float32)
    exponent = 8 * log2_floor(largest) + tf.reduce_sum(tf.cast(digits > EIGHTHS, tf.int32))
    exponent = tf.where(largest > 0, exponent, 0)
    steps = exponent + tf.range(-_TOP, 1)
    nonzero = tf.range(_TOP + 1) > 0
    scales = tf.where(nonzero, of_scales(EIGHTHS, steps), 0)
    levels = tf.searchsorted(scales, magnitudes)
    wanted = tf.where(nonzero, tf.gather(inverses, steps & 7) * power_of_two(-(steps // 8)), 0)
    return tf.cast(levels, tf.uint8), exponent + 8 * power, tf.gather(wanted, levels)


def of_levels(eighths: Any, levels: Any, exponents: Any) -> Any:
    """A product or quotient of each block's scale, float32 [chunks, blocks]; 0 where the scale is 0.

    Args:
        eighths: the same of each of the eighths, float32 [8].
        levels: uint8 [chunks, blocks].
        exponents: int32 [chunks].
    """
    levels = tf.cast(levels, tf.int32)
    return tf.where(levels > 0, of_scales(eighths, exponents[:, None] + levels - _TOP), 0)


def of_scales(eighths: Any, steps: Any) -> Any:
    """Float32, of scales 2**(steps/8)."""
    return tf.gather(eighths, steps & 7) * power_of_two(steps // 8)


def power_of_two(exponent: Any) -> Any:
    """2**exponent, float32, for an exponent of a normal number."""
    return tf.bitcast(tf.bitwise.left_shift(exponent + _BIAS, 23), tf.float32)


def log2_floor(values: Any) -> Any:
    """⌊log₂⌋ of numbers ≥ 0 and not subnormal, int32."""
    return tf.bitwise.right_shift(tf.bitcast(values, tf.int32), 23) - _BIAS
