"""Maximum and average pooling."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from export.lowering.call import Call, Lowered, emit, lowering, one, single
from export.lowering.elementwise import positive
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

    The elements of a window are met one after the other; `later` is 1 where one exceeds all before it. On the way
    back each takes the gradient where it was the last to do so.
    """
    windows = _windows(call)
    x = call.inputs[0]
    (y,) = emit(call)

    def pullback(dy: tf.Tensor) -> tf.Tensor:
        (largest, *others), width = [p for row in windows.unfold(x, _LOWEST) for p in row], windows.kernel[1]
        exceeds = []
        for part in others:
            later = positive(part - largest)
            # Exactly one of the two; MAXIMUM is ten times slower, and so is a number minus a tensor.
            largest = (largest - largest * later) + part * later
            exceeds.append(later)
        shares = []
        for later in reversed(exceeds):
            shares.append(dy * later)
            dy -= shares[-1]
        shares = [dy, *reversed(shares)]
        rows = [shares[i : i + width] for i in range(0, len(shares), width)]
        return windows.fold([tf.concat(row, axis=3) if width > 1 else row[0] for row in rows])

    return one(y, pullback)


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
