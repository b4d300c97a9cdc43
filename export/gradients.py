"""Gradients made of TFLite builtin operators, for operators whose TensorFlow gradient is none.

Inside a graph, `gradient_override_map` makes `tf.gradients` (not GradientTape) use the functions that are
registered here. Each equals TensorFlow's own gradient, ties in max-pooling included. Two rules follow from
measurements of tflite-runtime's kernels: comparisons are slow, so masks are made with `sign`; and
`tf.reverse` over two axes at once is wrong in TensorFlow Lite 2.14, so axes are reversed one at a time.

A function raises `ExportError` for a form of its operator that it does not cover (strides, dilation, …).
"""

from __future__ import annotations

import tensorflow as tf

from export.errors import ExportError

OVERRIDES = {
    "BiasAdd": "PocketfedBiasAdd",
    "Conv2D": "PocketfedConv2D",
    "MaxPool": "PocketfedMaxPool",
    "Relu": "PocketfedRelu",
}
"""Operator type → name of the registered gradient that replaces TensorFlow's."""

BUILTIN_AS_IS = frozenset({"Identity", "MatMul", "Reshape"})
"""Operator types whose own gradient in TensorFlow consists of TFLite builtins."""


def _layer(op: tf.Operation) -> str:
    """The Keras layer that an operator belongs to: the last but one part of ``model/layer/Operator``."""
    parts = str(op.name).split("/")
    return parts[-2] if len(parts) > 1 else parts[0]


def check_supported(logits: tf.Tensor) -> None:
    """Raise `ExportError` unless every operator between the weights and `logits` has a builtin gradient.

    Args:
        logits: the model's output, in a graph.
    """
    supported = BUILTIN_AS_IS | OVERRIDES.keys()
    pending, seen = [logits.op], set()
    depends = _operators_after_weights(logits.graph)
    while pending:
        op = pending.pop()
        if op.name in seen or op.name not in depends:
            continue
        seen.add(op.name)
        if op.type == "ReadVariableOp":
            continue
        if op.type not in supported:
            raise ExportError(
                f"layer {_layer(op)!r}: no builtin gradient for the operator {op.type};"
                f" supported are {', '.join(sorted(supported))}"
            )
        pending.extend(tensor.op for tensor in op.inputs)


def _operators_after_weights(graph: tf.Graph) -> set[str]:
    """Names of the operators that a weight flows into: the only ones that need a gradient."""
    after: set[str] = set()
    for op in graph.get_operations():  # in the order of their making, so inputs come first
        if op.type == "ReadVariableOp" or any(tensor.op.name in after for tensor in op.inputs):
            after.add(op.name)
    return after


@tf.RegisterGradient("PocketfedRelu")
def _relu(op: tf.Operation, dy: tf.Tensor) -> tf.Tensor:
    return dy * tf.sign(op.outputs[0])


@tf.RegisterGradient("PocketfedBiasAdd")
def _bias_add(op: tf.Operation, dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    if op.get_attr("data_format") != b"NHWC":
        raise ExportError(f"layer {_layer(op)!r}: BiasAdd with channels first; use data_format='channels_last'")
    return dy, tf.reduce_sum(dy, axis=list(range(len(dy.shape) - 1)))


@tf.RegisterGradient("PocketfedConv2D")
def _conv2d(op: tf.Operation, dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """dx is a convolution of dy with the filter turned by 180°; dw a product of patches of x with dy."""
    x, w = op.inputs
    height, width, channels_in, channels_out = w.shape
    padding = op.get_attr("padding")
    if (
        op.get_attr("strides") != [1, 1, 1, 1]
        or op.get_attr("dilations") != [1, 1, 1, 1]
        or padding not in (b"SAME", b"VALID")
        or op.get_attr("data_format") != b"NHWC"
        or x.shape[-1] != channels_in
    ):
        raise ExportError(
            f"layer {_layer(op)!r}: Conv2D is supported with strides 1, dilation 1, groups 1,"
            " padding 'same' or 'valid' and channels last"
        )
    same = padding == b"SAME"
    top, left = ((height - 1) // 2, (width - 1) // 2) if same else (0, 0)
    bottom, right = (height - 1 - top, width - 1 - left) if same else (0, 0)

    turned = tf.transpose(tf.reverse(tf.reverse(w, [0]), [1]), [0, 1, 3, 2])
    around_dy = [[0, 0], [height - 1 - top, height - 1 - bottom], [width - 1 - left, width - 1 - right], [0, 0]]
    dx = tf.nn.conv2d(tf.pad(dy, around_dy), turned, 1, "VALID")

    padded = tf.pad(x, [[0, 0], [top, bottom], [left, right], [0, 0]])
    rows, columns = dy.shape[1], dy.shape[2]
    patches = tf.concat(
        [padded[:, i : i + rows, j : j + columns, :] for i in range(height) for j in range(width)], axis=-1
    )
    dw = tf.matmul(
        tf.reshape(patches, [-1, height * width * channels_in]), tf.reshape(dy, [-1, channels_out]), transpose_a=True
    )
    return dx, tf.reshape(dw, w.shape)


@tf.RegisterGradient("PocketfedMaxPool")
def _max_pool(op: tf.Operation, dy: tf.Tensor) -> tf.Tensor:
    """The whole of dy goes to the first maximum of each window, in row-major order, as in TensorFlow.

    With y the maximum, 1 − sign(y − x) is 1 where x equals it and 0 elsewhere; `free` is 1 in the windows
    whose maximum has not been met yet.
    """
    x, y = op.inputs[0], op.outputs[0]
    size, strides = op.get_attr("ksize"), op.get_attr("strides")
    _, rows, columns, channels = x.shape
    _, height, width, _ = size
    if (
        size != strides
        or size[0] != 1
        or size[3] != 1
        or rows % height
        or columns % width
        or op.get_attr("data_format") != b"NHWC"
    ):
        raise ExportError(
            f"layer {_layer(op)!r}: MaxPool is supported with strides equal to the pool size,"
            f" on inputs that it divides (here {rows}×{columns} by {height}×{width}), channels last"
        )
    # Rows and columns of the windows as axes of their own, so that a split and a concatenation move whole
    # runs of memory: x as [n·rows/height, height, columns/width, width·channels].
    y = tf.reshape(y, [-1, 1, columns // width, channels])
    dy = tf.reshape(dy, [-1, 1, columns // width, channels])
    free = tf.ones_like(y)
    dx_rows = []
    for x_row in tf.split(tf.reshape(x, [-1, height, columns // width, width * channels]), height, axis=1):
        dx_row = []
        for x_here in tf.split(x_row, width, axis=3):
            here = free * (1.0 - tf.sign(y - x_here))
            free -= here
            dx_row.append(dy * here)
        dx_rows.append(tf.concat(dx_row, axis=3))
    return tf.reshape(tf.concat(dx_rows, axis=1), [-1, rows, columns, channels])
