"""How the artifact stores each weight.

A product's large operand belongs on the left (see `export.lowering.products`). The forward pass of a dense layer wants
the transposed kernel there, the way back to the layer's input wants the kernel itself. The first layer has no way back:
its kernel is stored transposed.

A large kernel is stored in slabs of rows, a variable each. A step needs a slab's value, gradient and new value side by
side, not the whole kernel's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import tensorflow as tf

from device_runtime.bundle import StoredVariable
from export.lowering.call import Gradient
from export.lowering.products import OuterProducts, computed, in_slabs, transposed

SLAB = 1 << 18
"""Most elements of a slab: a megabyte. Smaller ones, two threads tear apart (docs/performance.md)."""

SLAB_NAME = "pocketfed_slab"
"""What the names of slabs begin with."""


@dataclass(frozen=True)
class StoredWeight:
    """A weight of the model, and the artifact's variables that hold it.

    Attributes:
        weight: Keras's variable.
        variables: the artifact's; `weight` itself, or one of the transposed shape, or slabs of rows.
        turned: whether it is transposed.
    """

    weight: tf.Variable
    variables: tuple[tf.Variable, ...]
    turned: bool

    def read(self) -> tf.Tensor:
        """The weight's value."""
        if len(self.variables) > 1:
            return in_slabs(self.variables)
        value = self.variables[0].read_value()
        return transposed(value) if self.turned else value

    def values(self, read: tf.Tensor | None) -> list[tf.Tensor]:
        """The variables' values; `read` is the weight's own, and slabs are read again, when they are needed."""
        if read is None or len(self.variables) > 1:
            return [variable.read_value() for variable in self.variables]
        return [transposed(read) if self.turned else read]

    def gradients(self, gradient: Gradient) -> list[tf.Tensor]:
        """The weight's gradient as those of the variables; zeros for None."""
        if gradient is None:
            return [tf.zeros(variable.shape) for variable in self.variables]
        if self.turned:
            return [gradient.turned().compute() if isinstance(gradient, OuterProducts) else transposed(gradient)]
        if len(self.variables) == 1:
            return [computed(gradient)]
        slabs = [slice(*ends) for ends in pairwise(accumulate((int(v.shape[0]) for v in self.variables), initial=0))]
        if isinstance(gradient, OuterProducts):
            return [gradient.compute(slab) for slab in slabs]
        return [gradient[slab] for slab in slabs]

    def describe(self, tensor: int) -> list[StoredVariable]:
        """The variables as a manifest names them; `tensor` is the weight's place in it."""
        sizes = [int(variable.shape.num_elements()) for variable in self.variables]
        return [StoredVariable(tensor, sum(sizes[:position]), size, self.turned) for position, size in enumerate(sizes)]


def store(weights: Sequence[tf.Variable], turned: Collection[Any], factors: Collection[Any]) -> list[StoredWeight]:
    """The stored weights; those in `turned`, by reference, are transposed, large ones in `factors` are in slabs."""
    stored = []
    for weight in weights:
        variables: tuple[tf.Variable, ...] = (weight,)
        if weight.ref() in turned:
            variables = (tf.Variable(tf.zeros(weight.shape[::-1]), trainable=False),)
        elif weight.ref() in factors and weight.shape.num_elements() > SLAB:
            rows, columns = map(int, weight.shape)
            each = max(SLAB // columns, 1)
            count = -(-rows // each)
            each = -(-rows // count)  # as equal as can be
            sizes = [min(each, rows - start) for start in range(0, rows, each)]
            variables = tuple(tf.Variable(tf.zeros((size, columns)), trainable=False, name=SLAB_NAME) for size in sizes)
        stored.append(StoredWeight(weight, variables, weight.ref() in turned))
    return stored


def factors_of(graph: Any, trained: Sequence[tf.Variable]) -> tuple[set[Any], set[Any]]:
    """References of kernels that are only multiplied with, once each and on the right, in a traced training graph.

    First of those that are multiplied with what depends on no weight; then of the others.
    """
    handles = {id(variable.handle): variable for variable in trained}
    of_input = {inner.name: handles[id(outer)] for outer, inner in graph.captures if id(outer) in handles}
    depends: set[str] = set()
    reads: dict[str, Any] = {}
    first: dict[Any, bool] = {}
    factors: dict[Any, int] = {}
    for op in graph.get_operations():  # in the order of their making, so inputs come first
        used = [of_input[x.name].ref() for x in op.inputs if x.name in of_input]
        if op.type == "ReadVariableOp" and used:
            reads[op.outputs[0].name] = used[0]
            depends.add(op.name)
            continue
        for reference in used:
            first[reference] = False
        for position, x in enumerate(op.inputs):
            if x.name in reads:
                reference = reads[x.name]
                factor = op.type == "MatMul" and position == 1 and not op.get_attr("transpose_b")
                first[reference] = first.get(reference, True) and factor and op.inputs[0].op.name not in depends
                factors[reference] = factors.get(reference, 0) + (1 if factor else 2)
        if used or any(x.op.name in depends for x in op.inputs):
            depends.add(op.name)
    flat = {reference for reference in first if len(reference.deref().shape) == 2}
    turned = {reference for reference in flat if first[reference]}
    return turned, {reference for reference in flat - turned if factors.get(reference) == 1}
