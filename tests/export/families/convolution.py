"""Convolutions in one and two dimensions, with strides, dilation, groups and both paddings."""

from __future__ import annotations

import tensorflow as tf

from tests.export.families.family import branches, chain
from tests.export.parity_case import Row

keras = tf.keras.layers


def _conv(size: int, stride: int, dilation: int, padding: str) -> Row:
    """The second convolution sends its gradient through the first, and has more than a few channels."""
    return lambda x: chain(
        x,
        keras.Conv2D(6, size, stride, padding, dilation_rate=dilation, activation="tanh"),
        keras.Conv2D(5, 2, 1, padding),
    )


_CONV2D: dict[str, Row] = {
    f"size{size}_stride{stride}_dilation{dilation}_{padding}": _conv(size, stride, dilation, padding)
    for size, stride, dilation in ((3, 1, 1), (3, 2, 1), (2, 3, 1), (3, 1, 2))
    for padding in ("same", "valid")
}

FAMILIES = {
    "conv2d": branches(
        (9, 8, 3),
        {
            **_CONV2D,
            "strided_second": lambda x: chain(x, keras.Conv2D(6, 1), keras.Conv2D(4, 3, 2, "same")),
            "oblong": lambda x: chain(x, keras.Conv2D(6, (1, 3), (1, 2)), keras.Conv2D(4, (3, 1), (2, 1), "same")),
            "oblong_second": lambda x: chain(x, keras.Conv2D(6, 1), keras.Conv2D(4, (2, 3), (1, 2), "same")),
            "pointwise": lambda x: chain(x, keras.Conv2D(6, 1), keras.Conv2D(4, 1, 2, use_bias=False)),
        },
    ),
    "conv2d_kinds": branches(
        (8, 8, 4),
        {
            "groups": lambda x: chain(x, keras.Conv2D(8, 3, groups=2, padding="same"), keras.Conv2D(8, 3, groups=4)),
            "depthwise": lambda x: chain(
                x,
                keras.DepthwiseConv2D(3, padding="same", depth_multiplier=2),
                keras.DepthwiseConv2D(3, strides=2, padding="same"),
            ),
            "depthwise_valid": lambda x: chain(x, keras.DepthwiseConv2D(2), keras.DepthwiseConv2D(3, dilation_rate=2)),
            "separable": lambda x: chain(
                x, keras.SeparableConv2D(5, 3, padding="same"), keras.SeparableConv2D(4, 3, strides=2)
            ),
            "transpose": lambda x: chain(
                x, keras.Conv2DTranspose(5, 3, 2, "same"), keras.Conv2DTranspose(3, 3, 1, "valid")
            ),
            "transpose_wide": lambda x: chain(
                x, keras.Conv2DTranspose(5, 2, 3, "valid"), keras.Conv2DTranspose(3, 4, 2, "same", use_bias=False)
            ),
        },
    ),
    "conv1d": branches(
        (12, 3),
        {
            "same": lambda x: chain(x, keras.Conv1D(5, 3, padding="same"), keras.Conv1D(4, 3, 2, "same")),
            "causal_dilated": lambda x: chain(
                x, keras.Conv1D(5, 3, dilation_rate=2, padding="causal"), keras.Conv1D(4, 2, dilation_rate=3)
            ),
            "groups": lambda x: chain(x, keras.Conv1D(6, 3), keras.Conv1D(6, 3, groups=3)),
            "separable": lambda x: chain(x, keras.SeparableConv1D(5, 3, padding="same"), keras.SeparableConv1D(4, 3)),
            "depthwise": lambda x: chain(x, keras.Dense(4), keras.DepthwiseConv1D(3, strides=2)),
            "transpose": lambda x: chain(x, keras.Conv1DTranspose(4, 3, 2, "same"), keras.Conv1DTranspose(3, 2)),
        },
    ),
}
