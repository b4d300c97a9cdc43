"""Sums, means and maxima over axes."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from export.lowering.call import Call, Lowered, emit, lowering, one, single


def kept(call: Call, y: tf.Tensor) -> tf.Tensor:
    """y, a reduction's result or its gradient, with the reduced axes kept as 1."""
    x = call.inputs[0]
    if call.attr("keep_dims"):
        return y
    for axis in sorted(_axes(call)):
        y = tf.expand_dims(y, axis)
    y.set_shape([1 if axis in _axes(call) else size for axis, size in enumerate(x.shape)])
    return y


def _axes(call: Call) -> set[int]:
    return {int(axis) % len(call.inputs[0].shape) for axis in np.atleast_1d(call.constant(1))}


@lowering("Sum")
def _sum(call: Call) -> Lowered:
    x = call.inputs[0]
    return one(single(call), lambda dy: (kept(call, dy) + tf.zeros_like(x), None))


@lowering("Mean")
def _mean(call: Call) -> Lowered:
    x = call.inputs[0]
    return one(single(call), lambda dy: (kept(call, dy) / count_of(x, _axes(call)) + tf.zeros_like(x), None))


def count_of(x: tf.Tensor, axes: set[int]) -> float | tf.Tensor:
    """How many elements are reduced into one: a number, or a float32 [] where the batch is among the axes."""
    known = float(np.prod([x.shape[axis] for axis in axes if x.shape[axis] is not None], dtype=np.float64))
    count: float | tf.Tensor = known
    for axis in axes:
        if x.shape[axis] is None:
            count = count * tf.cast(tf.shape(x)[axis], x.dtype)
    return count


@lowering("Max", "Min")
def _extreme(call: Call) -> Lowered:
    """Where several elements are the largest, they share the gradient equally, as in TensorFlow."""
    x = call.inputs[0]
    (y,) = emit(call)

    def pullback(dy: tf.Tensor) -> tuple[tf.Tensor, None]:
        chosen = 1.0 - tf.abs(tf.sign(kept(call, y) - x))
        shares = tf.reduce_sum(chosen, sorted(_axes(call)), keepdims=True)
        return chosen * (kept(call, dy) / shares), None

    return one(y, pullback)
