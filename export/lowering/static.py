"""Values of a traced graph that are known at export though they are written as computations, such as twice a height."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

Array = npt.NDArray[Any]

_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "Add": np.add, "AddV2": np.add, "FloorDiv": np.floor_divide, "FloorMod": np.mod, "Maximum": np.maximum,
    "Minimum": np.minimum, "Mul": np.multiply, "Neg": np.negative, "Sub": np.subtract,
}  # fmt: skip


def static_value(tensor: tf.Tensor) -> Array | None:
    """The tensor's value, or None where it depends on the batch's size or on data."""
    value = tf.get_static_value(tensor)
    if value is not None:
        return np.asarray(value)
    op = tensor.op
    if op.type == "StridedSlice":
        return _sizes(op)
    if op.type not in (*_ARITHMETIC, "Identity", "Cast", "Pack", "ConcatV2"):
        return None
    values = [static_value(x) for x in op.inputs]
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return None
    if op.type == "Pack":
        return np.asarray(np.stack(known, op.get_attr("axis")))
    if op.type == "ConcatV2":
        return np.asarray(np.concatenate(known[:-1], int(known[-1])))
    if op.type in ("Identity", "Cast"):
        return known[0].astype(tensor.dtype.as_numpy_dtype)
    return np.asarray(_ARITHMETIC[op.type](*known), tensor.dtype.as_numpy_dtype)


def _sizes(op: tf.Operation) -> Array | None:
    """A slice of a shape: known where it leaves out the sizes that are not."""
    bounds = [static_value(x) for x in op.inputs[1:]]
    sizes = static_value(op.inputs[0]) if op.inputs[0].op.type != "Shape" else None
    if sizes is None and op.inputs[0].op.type == "Shape" and op.inputs[0].op.inputs[0].shape.rank is not None:
        sizes = np.array([-1 if size is None else size for size in op.inputs[0].op.inputs[0].shape], np.int32)
    if sizes is None or any(bound is None or bound.shape != (1,) for bound in bounds):
        return None
    begin, end, stride = (int(bound[0]) for bound in bounds if bound is not None)
    if op.get_attr("shrink_axis_mask"):
        taken = sizes[begin]
    else:
        taken = sizes[
            slice(None if op.get_attr("begin_mask") else begin, None if op.get_attr("end_mask") else end, stride)
        ]
    return None if np.any(taken == -1) else np.asarray(taken)
