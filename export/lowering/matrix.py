"""Matrix products: dense layers, batched products, and Einsum, which attention layers use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod

import tensorflow as tf

from export.lowering.call import Call, Gradient, Lowered, lowering, one
from export.lowering.products import (
    OuterProducts,
    computed,
    has_transposed,
    product,
    product_of_columns,
    slabs_of,
    transposed,
)


@lowering("MatMul")
def _mat_mul(call: Call) -> Lowered:
    """The gradient of a weight b is put off as `OuterProducts`; that of a has b, the larger one, on the left."""
    a, b = call.inputs
    if call.attr("transpose_a"):
        a = transposed(a)
    if call.attr("transpose_b"):
        b = transposed(b)
    a.set_shape([None, b.shape[0]])
    b.set_shape([a.shape[1], None])
    slabs = slabs_of(b) if a.shape[0] is None and not call.attr("transpose_a") else ()

    def pullback(dy: tf.Tensor) -> tuple[Gradient, Gradient]:
        da: Gradient = None
        db: Gradient = None
        few_rows = a.shape[0] is None  # the batch's
        if call.varies[0] and slabs:
            rows = [product(slab.read_value(), transposed(dy)) for slab in slabs]
            da = transposed(tf.concat(rows, 0))
        elif call.varies[0]:
            da = transposed(product(b, transposed(dy))) if few_rows else OuterProducts((dy,), (b,), axis=1)
        if call.varies[1]:
            db = OuterProducts((a,), (dy,), axis=0) if few_rows else product(transposed(a), dy)
        return (
            transposed(computed(da)) if call.attr("transpose_a") and da is not None else da,
            transposed(computed(db)) if call.attr("transpose_b") and db is not None else db,
        )

    if slabs:
        return one(_times_slabs(a, slabs, _rows_of_an_example(call.op.inputs[0])), pullback)
    if has_transposed(b) and a.shape[0] is None:  # the weight's other form is at hand: it goes to the left
        return one(transposed(product(transposed(b), transposed(a))), pullback)
    return one(product(a, b), pullback)


def _times_slabs(a: tf.Tensor, slabs: Sequence[tf.Variable], rows: int) -> tf.Tensor:
    """a, with so many rows an example, times the matrix of which the slabs are rows."""
    if rows > 1:  # the product is larger than the matrix: rather pack the one than turn the other
        parts = tf.split(a, [slab.shape[0] for slab in slabs], axis=1)
        return reduce(tf.add, [product(part, slab.read_value()) for part, slab in zip(parts, slabs, strict=True)])
    parts = tf.split(transposed(a), [slab.shape[0] for slab in slabs], axis=0)
    columns = [product_of_columns(slab.read_value(), part) for slab, part in zip(slabs, parts, strict=True)]
    return transposed(reduce(tf.add, columns))


def _rows_of_an_example(a: tf.Tensor) -> int:
    """How many rows of a traced matrix come of one example: the steps of a sequence, or 1."""
    source = a.op.inputs[0].shape if a.op.type == "Reshape" else a.shape
    sizes = source.as_list()[1:] if source.rank else []
    return 1 if None in sizes or not sizes else prod(sizes) // int(a.shape[1] or sizes[-1])


@lowering("BatchMatMulV2", "BatchMatMulV3", "BatchMatMul")
def _batch_mat_mul(call: Call) -> Lowered:
    a, b = call.inputs
    rank_a, rank_b = len(a.shape), len(b.shape)
    if rank_a != rank_b or rank_a > 4:
        call.refuse("operands of different or too many dimensions", "use operands of the same rank, at most 4")
    turn_a, turn_b = bool(call.attr("adj_x")), bool(call.attr("adj_y"))
    a, b = _turned(a, turn_a), _turned(b, turn_b)

    def pullback(dy: tf.Tensor) -> tuple[Gradient, Gradient]:
        da = _turned(tf.matmul(dy, _turned(b, True)), turn_a) if call.varies[0] else None
        db = _turned(tf.matmul(_turned(a, True), dy), turn_b) if call.varies[1] else None
        return da, db

    return one(tf.matmul(a, b), pullback)


def _turned(a: tf.Tensor, turn: bool) -> tf.Tensor:
    rank = len(a.shape)
    return tf.transpose(a, [*range(rank - 2), rank - 1, rank - 2]) if turn else a


@lowering("Einsum")
def _einsum(call: Call) -> Lowered:
    """Sums of products of two operands, such as ``abc,cd->abd``, as one batched matrix product."""
    equation = call.attr("equation").decode().replace(" ", "")
    operands, _, result = equation.partition("->")
    names = operands.split(",")
    if len(names) != 2 or "." in equation or any(len(set(name)) != len(name) for name in [*names, result]):
        call.refuse(f"the equation {equation}", "use two operands, without '...' or a repeated index")
    first, second = names
    if set(first) - set(second) - set(result) or set(second) - set(first) - set(result):
        call.refuse(f"the equation {equation}", "sum over an index of one operand with tf.reduce_sum")
    a, b = call.inputs

    def pullback(dy: tf.Tensor) -> tuple[Gradient, Gradient]:
        da = contract(dy, result, b, second, first) if call.varies[0] else None
        db = contract(a, first, dy, result, second) if call.varies[1] else None
        return da, db

    return one(contract(a, first, b, second, result), pullback)


def contract(a: tf.Tensor, first: str, b: tf.Tensor, second: str, result: str) -> tf.Tensor:
    """einsum(first, second -> result): indices in all three are batches, those in the operands alone are summed."""
    size = {**dict(zip(second, b.shape, strict=True)), **dict(zip(first, a.shape, strict=True))}
    batch = [i for i in first if i in second and i in result]
    summed = [i for i in first if i in second and i not in result]
    rows = [i for i in first if i not in second]
    columns = [i for i in second if i not in first]
    left = _grouped(a, first, [batch, rows, summed], size)
    right = _grouped(b, second, [batch, summed, columns], size)
    y = tf.matmul(left, right) if batch else product(left, right)
    y = _reshape(y, [size[i] for i in batch + rows + columns])
    order = batch + rows + columns
    return tf.transpose(y, [order.index(i) for i in result]) if order != list(result) else y


def _grouped(a: tf.Tensor, names: str, groups: list[list[str]], size: dict[str, int | None]) -> tf.Tensor:
    """a with its axes gathered into one axis a group; a group of batches that is empty is left out."""
    order = [i for group in groups for i in group]
    if order != list(names):
        a = tf.transpose(a, [names.index(i) for i in order])
    merged = [
        None if any(size[i] is None for i in group) else prod(size[i] or 1 for i in group)
        for position, group in enumerate(groups)
        if position or group
    ]
    return _reshape(a, merged)


def _reshape(a: tf.Tensor, sizes: list[int | None]) -> tf.Tensor:
    return tf.reshape(a, [-1 if size is None else size for size in sizes])
