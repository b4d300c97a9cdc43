"""`Call`: one operator of a traced model, about to be emitted again; and the table of how each type is emitted.

A *lowering* emits an operator's result with TFLite builtins, and says how a gradient passes back through it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy.typing as npt
import tensorflow as tf

from export.errors import ExportError
from export.lowering.products import OuterProducts
from export.lowering.static import static_value

Gradient: TypeAlias = tf.Tensor | OuterProducts | None
Pullback = Callable[..., Gradient | Sequence[Gradient]]
"""From the gradients of the outputs to those of the inputs; None where an input has none."""


@dataclass(frozen=True)
class Call:
    """One operator with its new inputs.

    Attributes:
        op: the operator in the traced graph: type, attributes, static values.
        inputs: the tensors of the new graph that take the place of its inputs.
        varies: for each input, whether it depends on a weight that is trained.
        layer: the Keras layer that it belongs to, for messages.
    """

    op: tf.Operation
    inputs: tuple[tf.Tensor, ...]
    varies: tuple[bool, ...]
    layer: str

    def attr(self, name: str) -> Any:
        return self.op.get_attr(name)

    def constant(self, index: int) -> npt.NDArray[Any]:
        """The value of an input that has to be known at export, such as axes or paddings."""
        value = static_value(self.op.inputs[index])
        if value is None:
            self.refuse("a shape or axis that is computed while the model runs", "write it as a constant")
        return value

    def size(self, index: int, *axes: int) -> tuple[int, ...]:
        """Static sizes of an input along these axes."""
        sizes = tuple(self.inputs[index].shape[axis] for axis in axes)
        if None in sizes:
            self.refuse(
                "an input whose size is not fixed", "give the model's Input a full shape; the batch alone is free"
            )
        return sizes

    def refuse(self, what: str, instead: str) -> NoReturn:
        """Raise `ExportError` naming the layer, the operator, and the nearest way that is supported."""
        raise ExportError(
            f"layer {self.layer!r}: operator {self.op.type} with {what} can't be trained on a device; {instead}"
        )


@dataclass(frozen=True)
class Lowered:
    """What an operator became: its outputs, and how gradients pass back through it; None where none passes."""

    outputs: tuple[tf.Tensor, ...]
    pullback: Pullback | None


Lowering = Callable[[Call], Lowered]
LOWERINGS: dict[str, Lowering] = {}
"""Operator type → its lowering."""


def lowering(*types: str) -> Callable[[Lowering], Lowering]:
    """Register a function as the lowering of these operator types."""

    def register(function: Lowering) -> Lowering:
        for name in types:
            assert name not in LOWERINGS, name
            LOWERINGS[name] = function
        return function

    return register


def one(output: tf.Tensor, pullback: Pullback) -> Lowered:
    """`Lowered` with a single output."""
    return Lowered((output,), pullback)


def emit(call: Call) -> tuple[tf.Tensor, ...]:
    """The operator as it is, with its new inputs."""
    op = call.op
    copy = tf.compat.v1.get_default_graph().create_op(
        op.type,
        list(call.inputs),
        [output.dtype for output in op.outputs],
        attrs={name: value for name, value in op.node_def.attr.items() if not name.startswith("_")},
        name=op.name.rpartition("/")[2],  # `export.replay` enters its scope
    )
    return tuple(copy.outputs)


def single(call: Call) -> tf.Tensor:
    """`emit` for an operator with one output."""
    (output,) = emit(call)
    return output
