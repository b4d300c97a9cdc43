"""Back-propagation through lowered operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from export.lowering import Gradient, OuterProducts
from export.lowering.products import computed


@dataclass(frozen=True)
class Value:
    """A tensor of the new graph, and whether it depends on a weight that is trained."""

    tensor: tf.Tensor
    varies: bool


@dataclass(frozen=True)
class Step:
    """One lowered operator, as back-propagation needs it."""

    inputs: tuple[tf.Tensor, ...]
    varies: tuple[bool, ...]
    outputs: tuple[tf.Tensor, ...]
    pullback: Any
    scope: str


def propagate(steps: Sequence[Step], found: dict[int, Gradient]) -> None:
    """Walk back through the operators, from the gradients in `found`, by a tensor's id, to those of their inputs."""
    for step in reversed(steps):
        by_outputs = [computed(found.pop(id(output), None)) for output in step.outputs]
        if all(gradient is None for gradient in by_outputs):
            continue
        filled = [
            tf.zeros_like(output) if gradient is None and output.dtype.is_floating else gradient
            for output, gradient in zip(step.outputs, by_outputs, strict=True)
        ]
        with tf.name_scope(step.scope):
            by_inputs = step.pullback(*filled)
        if not isinstance(by_inputs, tuple | list):
            by_inputs = (by_inputs,)
        for x, varies, gradient in zip(step.inputs, step.varies, by_inputs, strict=True):
            if varies and gradient is not None:
                found[id(x)] = add(found.get(id(x)), gradient)


def add(one: Gradient, other: Gradient) -> Gradient:
    """The sum of two gradients; of outer products along one axis it stays uncomputed."""
    if one is None:
        return other
    if isinstance(one, OuterProducts) and isinstance(other, OuterProducts) and one.axis == other.axis:
        return one + other
    return computed(one) + computed(other)
