"""Operators that move elements and compute nothing: reshape, transpose, slice, pad, split, join, gather."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from export.lowering.call import Call, Lowered, emit, lowering, one, single
from export.lowering.products import transposed
from export.lowering.shapes import reshape_like, unbroadcast
from export.lowering.static import static_value


@lowering("Identity", "Snapshot", "PreventGradient", "PlaceholderWithDefault")
def _identity(call: Call) -> Lowered:
    return one(call.inputs[0], lambda dy: dy)


@lowering("IdentityN")
def _identity_n(call: Call) -> Lowered:
    """TensorFlow wraps functions with a gradient of their own in it; the operators inside have theirs here."""
    return Lowered(call.inputs, lambda *dys: dys)


@lowering("StopGradient")
def _stop_gradient(call: Call) -> Lowered:
    return Lowered(call.inputs, None)


@lowering("Cast")
def _cast(call: Call) -> Lowered:
    if not (call.inputs[0].dtype == tf.float32 == call.op.outputs[0].dtype):
        return Lowered(emit(call), None)
    return one(call.inputs[0], lambda dy: dy)


@lowering("Reshape", "Squeeze", "ExpandDims")
def _reshape(call: Call) -> Lowered:
    x = call.inputs[0]
    known = call.op.outputs[0].shape
    wanted = static_value(call.op.inputs[1]) if call.op.type == "Reshape" else None
    if known.rank is not None and list(known).count(None) <= 1:
        y = tf.reshape(x, [-1 if size is None else size for size in known])
    elif wanted is not None:
        y = tf.reshape(x, [int(size) for size in wanted])
    else:
        (y,) = emit(call)
    return one(y, lambda dy: (reshape_like(dy, x), None)[: len(call.inputs)])


@lowering("Transpose")
def _transpose(call: Call) -> Lowered:
    order = [int(axis) for axis in call.constant(1)]
    y = transposed(call.inputs[0]) if order == [1, 0] else tf.transpose(call.inputs[0], order)
    inverse = [int(axis) for axis in np.argsort(order)]
    return one(y, lambda dy: (transposed(dy) if order == [1, 0] else tf.transpose(dy, inverse), None))


@lowering("ReverseV2")
def _reverse(call: Call) -> Lowered:
    """One axis at a time: over two at once REVERSE_V2 is wrong in TensorFlow Lite 2.14."""
    axes = [int(axis) for axis in np.atleast_1d(call.constant(1))]

    def turn(x: tf.Tensor) -> tf.Tensor:
        for axis in axes:
            x = tf.reverse(x, [axis])
        return x

    return one(turn(call.inputs[0]), lambda dy: (turn(dy), None))


@lowering("Pad", "PadV2")
def _pad(call: Call) -> Lowered:
    paddings = call.constant(1)

    def pullback(dy: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
        cut = tuple(slice(int(before), -int(after) if after else None) for before, after in paddings)
        return (dy[cut], None, None)[: len(call.inputs)]

    return one(single(call), pullback)


@lowering("StridedSlice")
def _strided_slice(call: Call) -> Lowered:
    """The gradient fills what the slice left out with zeros."""
    begin, end, strides = (call.constant(index) for index in (1, 2, 3))
    mask = {name: int(call.attr(f"{name}_mask")) for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")}
    if mask["ellipsis"] or mask["new_axis"]:
        call.refuse("an ellipsis or a new axis", "use tf.expand_dims, and write the slices out")
    slices = []
    for axis in range(len(begin)):
        bit = 1 << axis
        start = None if mask["begin"] & bit else int(begin[axis])
        stop = None if mask["end"] & bit else int(end[axis])
        if mask["shrink_axis"] & bit:
            stop = int(begin[axis]) + 1 or None
        slices.append(slice(start, stop, int(strides[axis])))
    return one(single(call), lambda dy: (_unslice(call, dy, slices), None, None, None))


def _unslice(call: Call, dy: tf.Tensor, slices: list[slice]) -> tf.Tensor:
    x = call.inputs[0]
    paddings = []
    kept = list(x.shape)
    for axis, cut in enumerate(slices):
        size = x.shape[axis]
        if cut == slice(None) or cut == slice(None, None, 1):
            paddings.append((0, 0))
            continue
        if size is None:
            call.refuse("a part of a free dimension", "slice a dimension of fixed size")
        start, stop, stride = cut.indices(size)
        if stride < 1:
            call.refuse("a negative stride", "use tf.reverse")
        kept[axis] = len(range(start, stop, stride))
        dy = tf.reshape(dy, [-1 if n is None else n for n in kept])
        if stride > 1:
            dy = spread(dy, axis, stride)
            dy = dy[(slice(None),) * axis + (slice(0, stride * (kept[axis] - 1) + 1),)]
            kept[axis] = stride * (kept[axis] - 1) + 1
        paddings.append((start, size - start - kept[axis]))
    dy = tf.reshape(dy, [-1 if n is None else n for n in kept])
    paddings += [(0, 0)] * (len(x.shape) - len(paddings))
    return tf.pad(dy, paddings) if any(map(any, paddings)) else dy


def spread(x: tf.Tensor, axis: int, stride: int) -> tf.Tensor:
    """x with stride − 1 zeros after each element along `axis`."""
    wide = [-1 if size is None else size for size in x.shape]
    flat = tf.reshape(x, [*wide[: axis + 1], 1, _product(x.shape[axis + 1 :])])
    flat = tf.pad(flat, [(0, 0)] * (axis + 1) + [(0, stride - 1), (0, 0)])
    wide[axis] *= stride
    return tf.reshape(flat, wide)


def _product(sizes: tf.TensorShape) -> int:
    return int(np.prod([int(size) for size in sizes], dtype=np.int64))


@lowering("Slice")
def _slice(call: Call) -> Lowered:
    x = call.inputs[0]
    begin, size = call.constant(1), call.constant(2)
    after = [
        0 if size[axis] == -1 or x.shape[axis] is None else int(x.shape[axis] - begin[axis] - size[axis])
        for axis in range(len(x.shape))
    ]
    paddings = [(int(b), a) for b, a in zip(begin, after, strict=True)]
    return one(single(call), lambda dy: (tf.pad(dy, paddings), None, None))


@lowering("Split")
def _split(call: Call) -> Lowered:
    axis = int(call.constant(0))
    return Lowered(emit(call), lambda *dys: (None, tf.concat(dys, axis)))


@lowering("SplitV")
def _split_v(call: Call) -> Lowered:
    axis = int(call.constant(2))
    return Lowered(emit(call), lambda *dys: (tf.concat(dys, axis), None, None))


@lowering("ConcatV2")
def _concat(call: Call) -> Lowered:
    *parts, _ = call.inputs
    axis = int(call.constant(len(parts)))
    sizes = [part.shape[axis] for part in parts]

    def pullback(dy: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
        if None in sizes:
            call.refuse("parts of free size", "join along a dimension of fixed size")
        return (*tf.split(dy, sizes, axis), None)

    return one(single(call), pullback)


@lowering("Pack")
def _pack(call: Call) -> Lowered:
    axis = int(call.attr("axis"))
    return one(single(call), lambda dy: tf.unstack(dy, len(call.inputs), axis))


@lowering("Unpack")
def _unpack(call: Call) -> Lowered:
    axis = int(call.attr("axis"))
    return Lowered(emit(call), lambda *dys: tf.stack(dys, axis))


@lowering("BroadcastTo")
def _broadcast_to(call: Call) -> Lowered:
    return one(single(call), lambda dy: (unbroadcast(dy, call.inputs[0]), None))


@lowering("Tile")
def _tile(call: Call) -> Lowered:
    multiples = [int(times) for times in call.constant(1)]

    def pullback(dy: tf.Tensor) -> tuple[tf.Tensor, None]:
        for axis in range(len(multiples)):
            if multiples[axis] > 1:  # one axis after the other, as [before, times, size·after]
                before = [-1 if size is None else size for size in dy.shape[:axis]]
                rest = [int(size) for size in dy.shape[axis + 1 :]]
                size = call.size(0, axis)[0]
                dy = tf.reshape(dy, [*before, multiples[axis], size * int(np.prod(rest, dtype=np.int64))])
                dy = tf.reshape(tf.reduce_sum(dy, axis), [*before, size, *rest])
        return dy, None

    return one(single(call), pullback)


@lowering("GatherV2", "ResourceGather")
def _gather(call: Call) -> Lowered:
    """Rows of a table, such as an embedding's; the gradients of a row that is taken twice add up."""
    table, indices = call.inputs[:2]
    axis = int(call.constant(2)) if call.op.type == "GatherV2" else 0
    if call.attr("batch_dims"):
        call.refuse("batch dimensions", "gather along a plain axis")
    front = [axis, *(a for a in range(len(table.shape)) if a != axis)]

    def pullback(dy: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
        if None in table.shape:
            call.refuse("a table of free size", "gather along a dimension of fixed size")
        ahead = len(indices.shape)
        if axis:
            moved = [*range(axis, axis + ahead), *range(axis), *range(axis + ahead, len(dy.shape))]
            dy = tf.transpose(dy, moved)
        shape = [int(table.shape[a]) for a in front]
        dy = tf.reshape(dy, [-1, *shape[1:]])
        added = tf.scatter_nd(tf.reshape(indices, [-1, 1]), dy, shape)
        if axis:
            added = tf.transpose(added, [int(a) for a in np.argsort(front)])
        return (added, None, None)[: len(call.op.inputs)]

    return one(tf.gather(table, indices, axis=axis), pullback)


@lowering("SpaceToBatchND")
def _space_to_batch(call: Call) -> Lowered:
    block, edges = call.constant(1), call.constant(2)
    return one(single(call), lambda dy: (tf.batch_to_space(dy, block, edges), None, None))


@lowering("BatchToSpaceND")
def _batch_to_space(call: Call) -> Lowered:
    block, edges = call.constant(1), call.constant(2)
    return one(single(call), lambda dy: (tf.space_to_batch(dy, block, edges), None, None))
