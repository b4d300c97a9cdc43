"""Resizing of images, as UpSampling2D does: linear in the image, so that the gradient is two matrix products."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from export.lowering.call import Call, Lowered, lowering, one


@lowering("ResizeNearestNeighbor", "ResizeBilinear")
def _resize(call: Call) -> Lowered:
    height, width, channels = call.size(0, 1, 2, 3)
    rows, columns = (int(size) for size in call.constant(1))
    by_row, by_column = _matrix(call, height, rows), _matrix(call, width, columns)

    def pullback(dy: tf.Tensor) -> tuple[tf.Tensor, None]:
        # [B, rows, columns·C] by the rows' matrix, then columns likewise.
        tall = tf.matmul(tf.constant(by_row.T[None]), tf.reshape(dy, [-1, rows, columns * channels]))
        wide = tf.matmul(tf.constant(by_column.T[None]), tf.reshape(tall, [-1, columns, channels]))
        return tf.reshape(wide, [-1, height, width, channels]), None

    return one(_resized(call, call.inputs[0], [rows, columns]), pullback)


def _resized(call: Call, images: tf.Tensor, size: list[int]) -> tf.Tensor:
    resize = {
        "ResizeNearestNeighbor": tf.raw_ops.ResizeNearestNeighbor,
        "ResizeBilinear": tf.raw_ops.ResizeBilinear,
    }[call.op.type]
    options = {name: bool(call.attr(name)) for name in ("align_corners", "half_pixel_centers")}
    return resize(images=images, size=size, **options)


def _matrix(call: Call, size: int, target: int) -> npt.NDArray[np.float32]:
    """[target, size]: what the operator makes of each unit vector."""
    with tf.init_scope():
        units = tf.reshape(tf.eye(size), [1, size, 1, size])
        matrix: npt.NDArray[np.float32] = _resized(call, units, [target, 1]).numpy()
    return matrix.reshape(target, size)
