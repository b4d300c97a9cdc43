"""Dropout whose masks follow from a seed alone, to the bit, in TensorFlow and in TensorFlow Lite.

Keras draws masks from generators with a state, which a phone can't repeat. Here a mask is a hash of the step's seed,
the number of the dropout call within the step, and the element's position. The hash is 32-bit arithmetic without signs,
which wraps by definition, and consists of operators that TensorFlow Lite 2.14 has: Mul, Add, RightShift, BitwiseXor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from models.state import all_layers

_layers = tf.keras.layers
_SUPPORTED = (_layers.Dropout, _layers.SpatialDropout1D, _layers.SpatialDropout2D, _layers.SpatialDropout3D)
_AMOUNTS = ("rate", "stddev", "dropout", "recurrent_dropout")
"""Attributes of Keras's random layers; where all that a layer has are 0, it draws nothing."""

# The multipliers of MurmurHash3's finalizer, and 2**32 over the golden ratio.
_FIRST, _SECOND, _GOLDEN = 0x85EBCA6B, 0xC2B2AE35, 0x9E3779B9


def has_dropout(model: tf.keras.Model) -> bool:
    """Whether the model's training step needs a seed.

    Raises:
        ValueError: a layer draws random numbers in a way that has no seeded form.
    """
    return bool(_dropout_layers(model))


@contextmanager
def seeded_dropout(model: tf.keras.Model, seed: int | tf.Tensor) -> Iterator[None]:
    """Within it, the model's dropout layers draw their masks from `seed`; to be held while a step is traced.

    Layers of nested models, in wrappers and inside of attention layers are found too. What is called with
    ``training=False`` passes its inputs on. Masks are scaled by 1/(1 − rate), as in Keras.

    Args:
        model: called within the context any number of times; each call of a dropout layer has a mask of its own.
        seed: int32 [], not negative.

    Raises:
        ValueError: a layer draws random numbers in a way that has no seeded form.
    """
    layers = _dropout_layers(model)
    if not layers:
        yield
        return
    numbers = itertools.count()
    key = _mix(tf.cast(seed, tf.uint32) + _word(_GOLDEN))
    for layer in layers:
        layer.call = _seeded_call(layer, key, numbers)
    try:
        yield
    finally:
        for layer in layers:
            del layer.call


def uniform(shape: tf.Tensor, key: tf.Tensor, number: int) -> tf.Tensor:
    """Numbers from 0 to below 1, multiples of 2⁻²⁴; float32 of this shape.

    Args:
        shape: int32 [rank].
        key: uint32 [], which stands for the seed.
        number: of the stream; streams of one key are independent.
    """
    # Two words of key, one before and one between the multiplications: with one alone, the streams of two keys
    # would be the same sequence from different places on.
    one = _mix(tf.bitwise.bitwise_xor(key, _word(_GOLDEN * (number + 1))))
    two = _mix(tf.bitwise.bitwise_xor(one, _word(_SECOND)))
    h = tf.cast(tf.range(tf.reduce_prod(shape)), tf.uint32) * _word(_GOLDEN) + one
    h = _fold(h, 16) * _word(_FIRST) + two
    h = _fold(_fold(h, 13) * _word(_SECOND), 16)
    unit = tf.cast(tf.bitwise.right_shift(h, _word(8)), tf.float32) * 2.0**-24  # 24 bits are exact in float32
    return tf.reshape(unit, shape)


def _dropout_layers(model: tf.keras.Model) -> list[Any]:
    found = []
    for layer in all_layers(model):
        if not isinstance(layer, tf.keras.__internal__.layers.BaseRandomLayer):
            continue
        amounts = [getattr(layer, name) for name in _AMOUNTS if hasattr(layer, name)]
        if amounts and not any(amounts):
            continue
        if type(layer) not in _SUPPORTED:
            raise ValueError(
                f"layer {layer.name!r}: {type(layer).__name__} draws random numbers that a device can't repeat;"
                f" supported are {', '.join(kind.__name__ for kind in _SUPPORTED)}"
            )
        found.append(layer)
    return found


def _seeded_call(layer: Any, key: tf.Tensor, numbers: Iterator[int]) -> Any:
    def call(inputs: tf.Tensor, training: Any = None) -> tf.Tensor:
        if not training:
            return inputs
        if layer.rate >= 1:
            return tf.zeros_like(inputs)
        # floor(u + keep) is 1 with probability `keep`; a comparison would be slower in TensorFlow Lite.
        keep = 1.0 - layer.rate
        mask = tf.floor(uniform(_mask_shape(layer, inputs), key, next(numbers)) + keep)
        return inputs * (mask * (1.0 / keep))

    return call


def _mask_shape(layer: Any, inputs: tf.Tensor) -> tf.Tensor:
    """Shape of the mask, int32 [rank]: 1 along the axes that share it."""
    rank = inputs.shape.rank
    if isinstance(layer, _layers.Dropout) and layer.noise_shape is not None:
        given = layer.noise_shape
    elif type(layer) is _layers.Dropout:
        given = [None] * rank
    else:
        channel = 1 if getattr(layer, "data_format", "channels_last") == "channels_first" else rank - 1
        given = [None if axis in (0, channel) else 1 for axis in range(rank)]
    sizes = [tf.shape(inputs)[axis] if size is None else size for axis, size in enumerate(given)]
    static = [inputs.shape[axis] if size is None else size for axis, size in enumerate(given)]
    return tf.stack([size if known is None else known for size, known in zip(sizes, static, strict=True)])


def _word(value: int) -> tf.Tensor:
    return tf.constant(value % 2**32, tf.uint32)


def _fold(h: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(h, tf.bitwise.right_shift(h, _word(bits)))


def _mix(h: tf.Tensor) -> tf.Tensor:
    """The finalizer of MurmurHash3 (Appleby): each bit of the result depends on all bits of h; uint32 of any shape."""
    return _fold(_fold(_fold(h, 16) * _word(_FIRST), 13) * _word(_SECOND), 16)
