"""Convolutions as patches and matrix products, which tflite-runtime computes at three times its CONV_2D's speed.

With a filter that is not trained CONV_2D is the faster one, and stays.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from export.lowering.call import Call, Gradient, Lowered, emit, lowering, one, single
from export.lowering.products import product, product_of_columns, transposed
from export.lowering.windows import Windows

_FEW_CHANNELS = 4
"""Up to so many channels patches are cheaper to make channel by channel, because whole rows of pixels are copied."""


@lowering("Conv2D")
def _conv2d(call: Call) -> Lowered:
    x, w = call.inputs
    height, width, per_group = (int(size) for size in w.shape[:3])
    windows = Windows.of(call, _image(call, 0), (height, width))
    groups = int(x.shape[3]) // per_group
    if groups > 1:
        return _grouped_conv2d(call, windows, groups)
    return _conv2d_by_patches(call, windows) if call.varies[1] else _conv2d_constant(call, windows)


def _conv2d_constant(call: Call, windows: Windows) -> Lowered:
    w = call.inputs[1]
    return one(single(call), lambda dy: (spread_windows(dy, w, windows), None))


def _conv2d_by_patches(call: Call, windows: Windows) -> Lowered:
    x, w = call.inputs
    y, weight_gradient = correlate(x, w, windows)
    return one(
        y,
        lambda dy: (spread_windows(dy, w, windows) if call.varies[0] else None, weight_gradient(dy)),
    )


def correlate(x: tf.Tensor, w: tf.Tensor, windows: Windows) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """The convolution of x [B, H, W, C] with w [h, w, C, N], and the function from dy to w's gradient."""
    height, width, channels, out = (int(size) for size in w.shape)
    if channels <= _FEW_CHANNELS and windows.kernel != (1, 1):
        return _correlate_few_channels(x, w, windows)
    if windows.stride[0] == 1:
        return _correlate_by_rows(x, w, windows)
    taps = height * width * channels
    parts = [part for row in windows.unfold(x) for part in row]
    patches = tf.reshape(_joined(parts), [-1, taps])
    y = tf.reshape(product(patches, tf.reshape(w, [taps, out])), [-1, *windows.count, out])

    def weight_gradient(dy: tf.Tensor) -> tf.Tensor:
        # (dyᵀ · patches)ᵀ: the patches are the larger of the two, and stay as they are.
        return tf.reshape(transposed(product(transposed(tf.reshape(dy, [-1, out])), patches)), w.shape)

    return y, weight_gradient


def _correlate_few_channels(
    x: tf.Tensor, w: tf.Tensor, windows: Windows
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    out = int(w.shape[3])
    patches = _patches_by_channel(x, windows)
    filters = tf.reshape(w, [-1, out])
    y = product_of_columns(patches, filters)
    return tf.reshape(y, [-1, *windows.count, out]), lambda dy: tf.reshape(
        product(patches, tf.reshape(dy, [-1, out])), w.shape
    )


def _correlate_by_rows(
    x: tf.Tensor, w: tf.Tensor, windows: Windows
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Patches along columns only, times the filters of all kernel rows at once; then the rows are added up.

    The patches are the kernel's height times smaller than those of whole windows, and stay in the cache.
    """
    height, width, channels, out = (int(size) for size in w.shape)
    rows, columns = windows.size[0], windows.count[1]
    patches = tf.reshape(_joined(windows.unfold_columns(x)), [-1, width * channels])
    products = tf.reshape(product(patches, windows.to_subtract(_by_rows(w), 0)), [-1, rows, columns, height * out])
    y = windows.gather_rows(tf.split(products, height, axis=3) if height > 1 else [products])

    def weight_gradient(dy: tf.Tensor) -> tf.Tensor:
        spread = tf.reshape(_joined(windows.scatter_rows(dy)), [-1, height * out])
        dw = tf.reshape(product_of_columns(patches, spread), [width, channels, height, out])
        return tf.transpose(dw, [2, 0, 1, 3])

    return y, weight_gradient


def _by_rows(w: tf.Tensor) -> tf.Tensor:
    """w [h, w, C, N] as [w · C, h · N]."""
    height, width, channels, out = (int(size) for size in w.shape)
    return tf.reshape(tf.transpose(w, [1, 2, 0, 3]), [width * channels, height * out])


def _joined(parts: list[tf.Tensor]) -> tf.Tensor:
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=3)


def _patches_by_channel(x: tf.Tensor, windows: Windows) -> tf.Tensor:
    """[h · w · C, B · rows · columns]."""
    channels = int(x.shape[3])
    padded = windows.pad(x)
    height, width = windows.padded
    planes = (
        tf.reshape(padded, [-1, height, width])
        if channels == 1
        else tf.reshape(tf.transpose(padded, [3, 0, 1, 2]), [channels, -1, height * width])
    )
    rows, columns = windows.count
    planes = tf.reshape(planes, [channels, -1, height, width])
    parts = [
        planes[:, :, windows.span(0, i, rows), windows.span(1, j, columns)]
        for i in range(windows.kernel[0])
        for j in range(windows.kernel[1])
    ]
    return tf.reshape(
        tf.concat([tf.reshape(part, [channels, -1]) for part in parts], axis=0), [len(parts) * channels, -1]
    )


def spread_windows(dy: tf.Tensor, w: tf.Tensor, windows: Windows) -> tf.Tensor:
    """The gradient of a convolution's image, which is also the transposed convolution of dy with w [h, w, C, N]."""
    height, width, channels, out = (int(size) for size in w.shape)
    if windows.stride[0] == 1:
        spread = tf.reshape(_joined(windows.scatter_rows(dy)), [-1, height * out])
        columns = product(spread, windows.to_subtract(transposed(_by_rows(w)), 1))
        columns = tf.reshape(columns, [-1, windows.size[0], windows.count[1], width * channels])
        return windows.fold_columns(tf.split(columns, width, axis=3) if width > 1 else [columns])
    columns = product(tf.reshape(dy, [-1, out]), transposed(tf.reshape(w, [height * width * channels, out])))
    columns = tf.reshape(columns, [-1, *windows.count, height * width * channels])
    return windows.fold(tf.split(columns, height, axis=3))


def _grouped_conv2d(call: Call, windows: Windows, groups: int) -> Lowered:
    x, w = call.inputs
    pairs = list(zip(tf.split(x, groups, axis=3), tf.split(w, groups, axis=3), strict=True))
    parts = [correlate(image, filters, windows) for image, filters in pairs]

    def pullback(dy: tf.Tensor) -> tuple[Gradient, Gradient]:
        dys = tf.split(dy, groups, axis=3)
        dx = [spread_windows(d, filters, windows) for d, (_, filters) in zip(dys, pairs, strict=True)]
        dw = [weight_gradient(d) for d, (_, weight_gradient) in zip(dys, parts, strict=True)]
        return (
            tf.concat(dx, axis=3) if call.varies[0] else None,
            tf.concat(dw, axis=3) if call.varies[1] else None,
        )

    return one(tf.concat([y for y, _ in parts], axis=3), pullback)


@lowering("Conv2DBackpropInput")
def _conv2d_transpose(call: Call) -> Lowered:
    """A transposed convolution: what `spread_windows` is to the convolution of its result."""
    _, w, x = call.inputs
    size = call.op.outputs[0].shape[1:3]
    if None in size:
        call.refuse("an output whose size is not fixed", "give the model's Input a full shape")
    windows = Windows.of(call, (int(size[0]), int(size[1])), (int(w.shape[0]), int(w.shape[1])))

    def pullback(dy: tf.Tensor) -> tuple[Gradient, Gradient, Gradient]:
        dx, weight_gradient = correlate(dy, w, windows)
        return None, weight_gradient(x) if call.varies[1] else None, dx if call.varies[2] else None

    return one(spread_windows(x, w, windows), pullback)


@lowering("DepthwiseConv2dNative")
def _depthwise(call: Call) -> Lowered:
    """Every channel by itself: windows times filter, element by element."""
    x, w = call.inputs
    height, width, channels, multiplier = (int(size) for size in w.shape)
    windows = Windows.of(call, _image(call, 0), (height, width))
    out = channels * multiplier
    if call.varies[1]:
        parts = [part for row in windows.unfold(x) for part in row]
        parts = [_repeated(part, multiplier) for part in parts]
        filters = tf.unstack(tf.reshape(w, [height * width, out]), axis=0)
        y = parts[0] * filters[0]
        for part, taps in zip(parts[1:], filters[1:], strict=True):
            y += part * taps
    else:
        (y,) = emit(call)

    def pullback(dy: tf.Tensor) -> tuple[Gradient, Gradient]:
        dx: Gradient = None
        dw: Gradient = None
        if call.varies[0]:
            taps = tf.unstack(tf.reshape(w, [height * width, out]), axis=0)
            shares = [_summed(dy * tap, channels, multiplier) for tap in taps]
            dx = windows.fold([tf.concat(shares[i * width : (i + 1) * width], axis=3) for i in range(height)])
        if call.varies[1]:
            flat = [tf.reduce_sum(tf.reshape(part * dy, [-1, out]), 0) for part in parts]
            dw = tf.reshape(tf.stack(flat), w.shape)
        return dx, dw

    return one(y, pullback)


def _repeated(x: tf.Tensor, times: int) -> tf.Tensor:
    """Each channel of [B, h, w, C] `times` times in a row."""
    if times == 1:
        return x
    _, rows, columns, channels = x.shape
    tall = tf.reshape(x, [-1, channels, 1])
    return tf.reshape(tf.concat([tall] * times, axis=2), [-1, rows, columns, channels * times])


def _summed(x: tf.Tensor, channels: int, times: int) -> tf.Tensor:
    """The adjoint of `_repeated`."""
    if times == 1:
        return x
    _, rows, columns, _ = x.shape
    return tf.reshape(tf.reduce_sum(tf.reshape(x, [-1, channels, times]), 2), [-1, rows, columns, channels])


def _image(call: Call, index: int) -> tuple[int, int]:
    rows, columns = call.size(index, 1, 2)
    return rows, columns
