"""Several ways to compute the same, at the shapes of the paper's models: what `benchmarks.kernels` measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import numpy as np
import tensorflow as tf

BATCH = 10
_Shape = tuple[int | None, ...]  # None is the batch, which a bundle leaves open too


@dataclass(frozen=True)
class Formulation:
    """A way to compute something from float32 inputs of these shapes, in `flops` operations for a batch of `BATCH`."""

    name: str
    function: Callable[..., tf.Tensor]
    shapes: tuple[_Shape, ...]
    flops: float = 0.0


def groups() -> dict[str, list[Formulation]]:
    """What is computed → the ways to compute it."""
    return {
        "convolution 5×5, 14×14×32 to 64": _convolution(),
        "product 1960×160 · 160×320": _product(1960, 160, 320),
        "product 160×1960 · 1960×320": _product(160, 1960, 320),
        "product 256×800 · 800×1024": _product(256, 800, 1024),
        "dense layer, 10×3136 to 512": _dense(3136, 512),
        "recurrent product, 256 to 1024": _dense(256, 1024),
        "winner of 2×2, 28×28×32": _winner(),
        "sum of nine, 14×14×64": _sum(),
    }


def _convolution() -> list[Formulation]:
    size, channels, out, kernel = 14, 32, 64, 5
    x, w = (None, size, size, channels), (kernel, kernel, channels, out)
    flops = 2.0 * BATCH * size * size * out * kernel * kernel * channels
    fixed = np.random.default_rng(0).standard_normal(w).astype(np.float32)
    half = kernel // 2

    def windows(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
        padded = tf.pad(x, [[0, 0], [half, half], [half, half], [0, 0]])
        taps = [padded[:, i : i + size, j : j + size] for i in range(kernel) for j in range(kernel)]
        patches = tf.reshape(tf.concat(taps, 3), [-1, kernel * kernel * channels])
        return tf.reshape(tf.matmul(patches, tf.reshape(w, [-1, out])), [-1, size, size, out])

    def rows(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
        # As export/lowering/convolution.py does it.
        padded = tf.pad(x, [[0, 0], [0, 0], [half, half], [0, 0]])
        taps = tf.concat([padded[:, :, j : j + size] for j in range(kernel)], 3)
        filters = tf.reshape(tf.transpose(w, [1, 2, 0, 3]), [kernel * channels, kernel * out])
        filters *= np.repeat([1.0, *[-1.0] * (kernel - 1)], out).astype(np.float32)
        products = tf.matmul(tf.reshape(taps, [-1, kernel * channels]), filters)
        parts = tf.split(tf.reshape(products, [-1, size, size, kernel * out]), kernel, 3)
        edges = [[[0, 0], [kernel - 1 - i, i], [0, 0], [0, 0]] for i in range(kernel)]
        summed = tf.pad(parts[0], edges[0])
        for part, edge in zip(parts[1:], edges[1:], strict=True):
            summed -= tf.pad(part, edge)
        return summed[:, half : half + size]

    return [
        Formulation("CONV_2D, constant filter", lambda x: tf.nn.conv2d(x, fixed, 1, "SAME"), (x,), flops),
        Formulation("CONV_2D, variable filter", lambda x, w: tf.nn.conv2d(x, w, 1, "SAME"), (x, w), flops),
        Formulation("patches of whole windows", windows, (x, w), flops),
        Formulation("patches along columns", rows, (x, w), flops),
        # Where no size is open, the converter drops the reshapes: it becomes 140 products of 14 rows.
        Formulation("the same, batch of fixed size", rows, ((BATCH, *x[1:]), w), flops),
    ]


def _apart(a: tf.Tensor) -> tf.Tensor:
    """aᵀ, with a reshape behind it, so that the converter does not fold it into a product."""
    rows, columns = a.shape
    return tf.reshape(tf.transpose(a[tf.newaxis], [0, 2, 1]), [columns, rows])


def _product(m: int, k: int, n: int) -> list[Formulation]:
    flops = 2.0 * m * k * n
    return [
        Formulation("nothing transposed", tf.matmul, ((m, k), (k, n)), flops),
        Formulation("left transposed", lambda a, b: tf.matmul(a, b, transpose_a=True), ((k, m), (k, n)), flops),
        Formulation("left transposed before", lambda a, b: tf.matmul(_apart(a), b), ((k, m), (k, n)), flops),
        Formulation("right transposed", lambda a, b: tf.matmul(a, b, transpose_b=True), ((m, k), (n, k)), flops),
        Formulation("right transposed before", lambda a, b: tf.matmul(a, _apart(b)), ((m, k), (n, k)), flops),
    ]


def _dense(inputs: int, outputs: int) -> list[Formulation]:
    flops = 2.0 * BATCH * inputs * outputs
    x, w = (BATCH, inputs), (inputs, outputs)
    return [
        Formulation("weight right", tf.matmul, (x, w), flops),
        Formulation("weight right, transposed", lambda x, w: tf.matmul(x, w, transpose_b=True), (x, w[::-1]), flops),
        Formulation("weight left, states as columns", lambda x, w: tf.matmul(w, x), (x[::-1], w[::-1]), flops),
        Formulation("weight left, states as rows", lambda x, w: _apart(tf.matmul(w, _apart(x))), (x, w[::-1]), flops),
    ]


def _sum() -> list[Formulation]:
    """Nine tensors into one; tflite-runtime overwrites the sum so far where it adds, and does that slowly."""
    shapes = ((None, 14, 14, 64),) * 9
    return [
        Formulation("added", lambda first, *others: reduce(tf.add, others, first), shapes),
        Formulation("subtracted", lambda first, *others: reduce(tf.subtract, others, first), shapes),
    ]


def _winner() -> list[Formulation]:
    """Ones where a pooling window has its maximum: a step towards the gradient of a pooling."""
    size, channels = 28, 32
    x = (None, size, size, channels)

    def resized(x: tf.Tensor) -> tf.Tensor:
        largest = tf.nn.max_pool2d(x, 2, 2, "VALID")
        return tf.cast(x >= tf.image.resize(largest, [size, size], "nearest"), tf.float32)

    def differences(x: tf.Tensor) -> tf.Tensor:
        # Windows by shape: each of the four elements lies at a fixed place of [B · rows, 2, columns, 2 · C].
        halves = tf.split(tf.reshape(x, [-1, 2, size // 2, 2 * channels]), 2, 1)
        corners = [corner for half in halves for corner in tf.split(half, 2, 3)]
        best = tf.maximum(tf.maximum(corners[0], corners[1]), tf.maximum(corners[2], corners[3]))
        marks = [1.0 - tf.minimum((best - corner) * 1e30, 1.0) for corner in corners]
        rows = [tf.concat(marks[:2], 3), tf.concat(marks[2:], 3)]
        return tf.reshape(tf.concat(rows, 1), [-1, size, size, channels])

    def separately(x: tf.Tensor) -> tf.Tensor:
        # As export/lowering/pooling.py does it: the right column of each row, then the lower row.
        left, right = tf.split(tf.reshape(x, [-1, size, size // 2, 2 * channels]), 2, 3)
        across = tf.sign(tf.nn.relu(right - left))
        best = tf.reshape((left - left * across) + right * across, [-1, 2, size // 2, channels])
        upper, lower = tf.split(best, 2, 1)
        below = tf.sign(tf.nn.relu(lower - upper))
        rows = tf.reshape(tf.concat([below * -1.0 + 1.0, below], 1), [-1, size, size // 2, channels])
        marked = rows * across
        return tf.reshape(tf.concat([rows - marked, marked], 3), [-1, size, size, channels])

    return [
        Formulation("resized maximum and comparison", resized, (x,)),
        Formulation("split by shape, no comparison", differences, (x,)),
        Formulation("along columns, then along rows", separately, (x,)),
    ]
