"""Maximum and average pooling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from export.lowering.call import Call, Lowered, lowering, one, single
from export.lowering.elementwise import masked_by_pooling, positive
from export.lowering.windows import Windows

_LOWEST = float(np.finfo(np.float32).min)


def _windows(call: Call) -> Windows:
    size = call.attr("ksize")
    if size[0] != 1 or size[3] != 1:
        call.refuse("pooling over examples or channels", "pool over rows and columns")
    rows, columns = call.size(0, 1, 2)
    return Windows.of(call, (rows, columns), (int(size[1]), int(size[2])))


@lowering("MaxPool")
def _max_pool(call: Call) -> Lowered:
    """The whole of dy goes to the first maximum of each window, in row-major order, as in TensorFlow.

    That is the first column with the maximum of the first row with it: so a window is searched along its columns, and
    the columns' maxima along rows. Their maximum is the window's; MAX_POOL_2D besides would take more time.
    """
    windows = _windows(call)
    best, to_columns = _search(call.inputs[0], windows.across())
    y, to_rows = _search(best, windows.down())

    def pullback(dy: tf.Tensor) -> tf.Tensor:
        masked = dy * tf.sign(y) if masked_by_pooling(call.op.inputs[0].op) else dy
        return to_columns(to_rows(masked))

    return one(y, pullback)


def _search(x: tf.Tensor, windows: Windows) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """The maximum of each window, one element high or wide, and the function that gives dy to the first one in it.

    The elements of a window are met one after the other; `later` is 1 where one exceeds all before it. On the way
    back each takes the gradient where it was the last to do so.
    """
    (largest, *others) = [part for row in windows.unfold(x, _LOWEST) for part in row]
    exceeds = []
    for part in others:
        later = positive(part - largest)
        # Exactly one of the two; MAXIMUM is ten times slower, and so is a number minus a tensor.
        largest = (largest - largest * later) + part * later
        exceeds.append(later)

    def pullback(dy: tf.Tensor) -> tf.Tensor:
        shares = []
        for later in reversed(exceeds):
            shares.append(dy * later)
            dy -= shares[-1]
        shares = [dy, *reversed(shares)]
        if windows.kernel[0] == 1:
            shares = [tf.concat(shares, axis=3) if len(shares) > 1 else shares[0]]
        return windows.fold(shares)

    return largest, pullback


@lowering("AvgPool")
def _average_pool(call: Call) -> Lowered:
    """Every element of a window gets dy over their number; the padding does not count."""
    windows = _windows(call)
    inside = np.pad(np.ones(windows.size), list(zip(windows.before, windows.after, strict=True)))
    rows, columns = windows.count
    counts = sum(
        inside[windows.span(0, i, rows), windows.span(1, j, columns)]
        for i in range(windows.kernel[0])
        for j in range(windows.kernel[1])
    )
    shares = tf.constant(1.0 / np.asarray(counts)[None, :, :, None], tf.float32)

    def pullback(dy: tf.Tensor) -> tf.Tensor:
        share = dy * shares
        row = share if windows.kernel[1] == 1 else tf.concat([share] * windows.kernel[1], axis=3)
        return windows.fold([row] * windows.kernel[0])

    return one(single(call), pullback)
