"""Matrix products in the one form that tflite-runtime computes fast, and sums of them put off until they are one.

Its BATCH_MATMUL with nothing transposed reaches twice to three times the speed of FULLY_CONNECTED, of a product
with a transposed operand, and of CONV_2D with a filter that is no constant (docs/performance.md). It copies its
second operand into another layout, so a large matrix belongs on the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import tensorflow as tf

_transposes: WeakKeyDictionary[tf.Graph, dict[int, tf.Tensor]] = WeakKeyDictionary()
_slabs: WeakKeyDictionary[tf.Graph, dict[int, tuple[tf.Variable, ...]]] = WeakKeyDictionary()


def product(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """a [m, k] times b [k, n]."""
    return tf.matmul(a, b)


def product_of_columns(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """aᵀ·b, of a [k, m] and b [k, n]; BATCH_MATMUL turns its left operand faster than it packs a right one."""
    turned = tf.matmul(tf.expand_dims(a, 0), tf.expand_dims(b, 0), transpose_a=True)
    return tf.reshape(turned, [-1 if n is None else n for n in (a.shape[1], b.shape[1])])


def transposed(a: tf.Tensor) -> tf.Tensor:
    """a [m, n] as [n, m]; the same tensor for the same a, and a itself again for that one."""
    known = _transposes.setdefault(a.graph, {})
    if id(a) not in known:
        rows, columns = a.shape
        with a.graph.as_default():  # which may be around the present one: made there, it is made once
            # With a reshape between, the converter does not make a FULLY_CONNECTED of a product and a transposition.
            b = tf.transpose(tf.expand_dims(a, 0), [0, 2, 1])
            b = tf.reshape(b, [-1 if n is None else n for n in (columns, rows)])
        known[id(a)], known[id(b)] = b, a
    return known[id(a)]


def has_transposed(a: tf.Tensor) -> bool:
    """Whether `transposed` costs nothing, because a was made from it or it from a."""
    return id(a) in _transposes.get(a.graph, {})


def in_slabs(variables: Sequence[tf.Variable]) -> tf.Tensor:
    """The matrix whose rows are in these variables; a product asks for them by `slabs_of`."""
    whole = tf.concat([variable.read_value() for variable in variables], 0)
    _slabs.setdefault(tf.compat.v1.get_default_graph(), {})[id(whole)] = tuple(variables)
    return whole


def slabs_of(a: tf.Tensor) -> tuple[tf.Variable, ...]:
    """The variables that `a` was made of by `in_slabs`; none for any other tensor."""
    return _slabs.get(tf.compat.v1.get_default_graph(), {}).get(id(a), ())


@dataclass(frozen=True)
class OuterProducts:
    """A sum of matrix products that has not been computed yet: the gradient of a weight that is used many times.

    A recurrent layer uses its weight at every step. One product over all steps at once is far faster than the sum
    of one product a step.

    Attributes:
        left, right: with `axis` 0, the sum of leftᵢᵀ·rightᵢ, of [r, m] and [r, n]; with `axis` 1, the sum of
            leftᵢ·rightᵢᵀ, of [m, r] and [n, r].
    """

    left: tuple[tf.Tensor, ...]
    right: tuple[tf.Tensor, ...]
    axis: int

    def __add__(self, other: OuterProducts) -> OuterProducts:
        return OuterProducts(self.left + other.left, self.right + other.right, self.axis)

    def turned(self) -> OuterProducts:
        """The same, transposed."""
        return OuterProducts(self.right, self.left, self.axis)

    def compute(self, rows: slice = slice(None)) -> tf.Tensor:
        """The sum, [m, n], or some of its rows."""
        left, right = (
            parts[0] if len(parts) == 1 else tf.concat(parts, self.axis) for parts in (self.left, self.right)
        )
        if self.axis == 0:
            left = transposed(left)
        else:
            right = transposed(right)
        return product(left if rows == slice(None) else left[rows], right)


def computed(gradient: Any) -> Any:
    """A gradient as a tensor: `OuterProducts` multiplied out, anything else as it is."""
    return gradient.compute() if isinstance(gradient, OuterProducts) else gradient
