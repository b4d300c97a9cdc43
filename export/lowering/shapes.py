"""Small helpers on shapes, shared by the lowerings."""

from __future__ import annotations

import tensorflow as tf


def target_shape(x: tf.Tensor) -> list[int] | tf.Tensor:
    """The shape of x as `tf.reshape` takes it: -1 for the batch; a tensor where more than one size is free."""
    sizes = [-1 if size is None else size for size in x.shape]
    return sizes if sizes.count(-1) <= 1 else tf.shape(x)


def reshape_like(y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """y, reshaped to the shape of x."""
    return tf.reshape(y, target_shape(x))


def unbroadcast(gradient: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Sum a broadcast result's gradient over the axes along which x was repeated.

    A size that is free in x and in the gradient is taken to be the same, the batch.
    """
    extra = len(gradient.shape) - len(x.shape)
    axes = [
        axis
        for axis in range(len(gradient.shape))
        if axis < extra or (x.shape[axis - extra] == 1 and gradient.shape[axis] != 1)
    ]
    if not axes:
        return gradient
    return reshape_like(tf.reduce_sum(gradient, axes), x)
