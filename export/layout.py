"""In which layout the artifact stores each weight.

A product's large operand belongs on the left (see `export.lowering.products`). The forward pass of a dense layer wants
the transposed kernel there, the way back to the layer's input wants the kernel itself. The first layer has no way back:
its kernel is stored transposed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from export.lowering.products import transposed


@dataclass(frozen=True)
class StoredWeight:
    """A weight of the model, and the artifact's variable that holds it.

    Attributes:
        weight: Keras's variable.
        variable: the artifact's; `weight` itself, or of the transposed shape.
        turned: whether it is transposed.
    """

    weight: tf.Variable
    variable: tf.Variable
    turned: bool

    def read(self) -> tf.Tensor:
        """The weight's value."""
        return transposed(self.variable.read_value()) if self.turned else self.variable.read_value()

    def write(self, value: tf.Tensor) -> None:
        """Assign a value of the weight's shape."""
        self.variable.assign(tf.transpose(value) if self.turned else value)


def store(weights: Sequence[tf.Variable], turned: Collection[Any]) -> list[StoredWeight]:
    """The stored weights; those in `turned`, by reference, are transposed."""
    return [
        StoredWeight(weight, tf.Variable(tf.zeros(weight.shape[::-1]), trainable=False), True)
        if weight.ref() in turned
        else StoredWeight(weight, weight, False)
        for weight in weights
    ]


def weights_to_turn(graph: Any, trained: Sequence[tf.Variable]) -> set[Any]:
    """References of the kernels that are only multiplied with what depends on no weight, in a traced training graph."""
    handles = {id(variable.handle): variable for variable in trained}
    of_input = {inner.name: handles[id(outer)] for outer, inner in graph.captures if id(outer) in handles}
    depends: set[str] = set()
    reads: dict[str, Any] = {}
    fits: dict[Any, bool] = {}
    for op in graph.get_operations():  # in the order of their making, so inputs come first
        used = [of_input[x.name].ref() for x in op.inputs if x.name in of_input]
        if op.type == "ReadVariableOp" and used:
            reads[op.outputs[0].name] = used[0]
            depends.add(op.name)
            continue
        for reference in used:
            fits[reference] = False
        for position, x in enumerate(op.inputs):
            if x.name in reads:
                alone = op.type == "MatMul" and position == 1 and not op.get_attr("transpose_b")
                alone = alone and op.inputs[0].op.name not in depends
                fits[reads[x.name]] = fits.get(reads[x.name], True) and alone
        if used or any(x.op.name in depends for x in op.inputs):
            depends.add(op.name)
    return {reference for reference, fit in fits.items() if fit and len(reference.deref().shape) == 2}
