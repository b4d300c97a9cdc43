"""Batch normalisation as one operator, and local response normalisation."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from export.lowering.call import Call, Gradient, Lowered, lowering, one
from export.lowering.products import product
from export.lowering.reduction import count_of


@lowering("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
def _fused_batch_norm(call: Call) -> Lowered:
    """With the batch's own statistics in training; the variance that goes into the moving one is unbiased."""
    x, scale, offset, mean, variance = call.inputs
    axis = {b"NHWC": len(x.shape) - 1, b"NCHW": 1}[call.attr("data_format")]
    axes = [a for a in range(len(x.shape)) if a != axis]
    shape = [1] * len(x.shape)
    shape[axis] = -1

    def along(value: tf.Tensor) -> tf.Tensor:
        return tf.reshape(value, shape)

    training = bool(call.attr("is_training"))
    count = count_of(x, set(axes))
    outputs = (mean, variance)
    if training:
        mean = tf.reduce_mean(x, axes)
        centred = x - along(mean)
        variance = tf.reduce_mean(centred * centred, axes)
        outputs = (mean, variance * (count / tf.maximum(count - 1.0, 1.0)))
        factor = float(call.attr("exponential_avg_factor")) if call.op.type == "FusedBatchNormV3" else 1.0
        if factor != 1.0:  # the operator itself moves the averages
            outputs = tuple(
                moving + factor * (batch - moving) for moving, batch in zip(call.inputs[3:], outputs, strict=True)
            )
    else:
        centred = x - along(mean)
    inverse = tf.math.rsqrt(variance + float(call.attr("epsilon")))
    normal = centred * along(inverse)
    y = normal * along(scale) + along(offset)

    def pullback(dy: tf.Tensor, *_: tf.Tensor) -> tuple[Gradient, ...]:
        by_offset = tf.reduce_sum(dy, axes)
        by_scale = tf.reduce_sum(dy * normal, axes)
        dx = dy
        if training:
            dx = dy - along(by_offset / count) - normal * along(by_scale / count)
        return dx * along(inverse * scale), by_scale, by_offset, None, None

    rest = tuple(tf.zeros_like(mean) for _ in call.op.outputs[3:])
    return Lowered((y, *outputs, *rest), pullback)


@lowering("LRN")
def _local_response_normalization(call: Call) -> Lowered:
    """y = x · s^−β with s = bias + α · Σ x² over the channels around; the sum is a product with a band of ones."""
    (x,) = call.inputs
    radius, bias = int(call.attr("depth_radius")), float(call.attr("bias"))
    alpha, beta = float(call.attr("alpha")), float(call.attr("beta"))
    channels = call.size(0, 3)[0]
    position = np.arange(channels)
    band = tf.constant(np.abs(position[:, None] - position) <= radius, tf.float32)
    flat = tf.reshape(x, [-1, channels])
    s = bias + alpha * product(flat * flat, band)
    power = tf.exp(-beta * tf.math.log(s))
    y = flat * power

    def pullback(dy: tf.Tensor) -> tf.Tensor:
        dy = tf.reshape(dy, [-1, channels])
        around = product(dy * y / s, band)
        return tf.reshape(dy * power - (2.0 * alpha * beta) * flat * around, [-1, *x.shape[1:]])

    return one(tf.reshape(y, [-1, *x.shape[1:]]), pullback)
