"""The client's optimiser, in operators that TensorFlow Lite has too: one definition for simulation and device.

Only `assign` changes a variable, because TensorFlow Lite has no other; every operator here is one of its builtins.
The formulas are those of Keras 2.14, the place of Adam's epsilon included. An optimiser's state lasts for one
client's round: it is reset when the client starts, and never travels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import tensorflow as tf

NAMES = ("sgd", "momentum", "adam")


@dataclass(frozen=True)
class ClientOptimizer:
    """How a client turns gradients into steps; the learning rate comes with each step.

    Attributes:
        name: ``sgd``, ``momentum`` (SGD with momentum, Polyak 1964) or ``adam`` (Kingma and Ba 2015).
        momentum: of ``momentum``; 0 ≤ momentum < 1.
        beta_1, beta_2: Adam's decays of the first and second moment; 0 ≤ beta < 1.
        epsilon: Adam's, added to the root of the second moment; above 0.
        clip_norm: largest global norm of a gradient (Pascanu et al. 2013); a longer one is scaled down; None is no
            limit.

    Raises:
        ValueError: a field is out of range; one line that names it.
    """

    name: str = "sgd"
    momentum: float = 0.9
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        _check(self.name in NAMES, "name", f"one of {', '.join(NAMES)}", self.name)
        for field in ("momentum", "beta_1", "beta_2"):
            value = getattr(self, field)
            _check(_is_number(value) and 0 <= value < 1, field, "a number of at least 0 and below 1", value)
        _check(_is_number(self.epsilon) and self.epsilon > 0, "epsilon", "a finite number above 0", self.epsilon)
        _check(
            self.clip_norm is None or (_is_number(self.clip_norm) and self.clip_norm > 0),
            "clip_norm",
            "a finite number above 0, or none",
            self.clip_norm,
        )

    def make_slots(self, weights: Sequence[tf.Variable]) -> list[tf.Variable]:
        """The state, zero: a velocity a weight for ``momentum``; two moments a weight and a counter for ``adam``."""
        zeros = {"sgd": 0, "momentum": 1, "adam": 2}[self.name]
        slots = [tf.Variable(tf.zeros_like(weight), trainable=False) for _ in range(zeros) for weight in weights]
        if self.name == "adam":
            slots.append(tf.Variable(0.0, trainable=False))
        return slots

    def reset(self, slots: Sequence[tf.Variable]) -> None:
        """Back to the state that `make_slots` gave."""
        for slot in slots:
            slot.assign(tf.zeros_like(slot))

    def clip(self, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The gradients, scaled down together to the global norm `clip_norm` where theirs is larger.

        It is meant for the gradients of the loss alone: a proximal term is added afterwards, so that a large gradient
        does not weaken the pull towards the weights that the round started from.
        """
        if self.clip_norm is None:
            return list(gradients)
        squares = [_sum_of_squares(gradient) for gradient in gradients]
        total = squares[0]
        for square in squares[1:]:
            total = total + square
        scale = self.clip_norm / tf.maximum(tf.sqrt(total), self.clip_norm)
        return [gradient * scale for gradient in gradients]

    def apply(
        self,
        weights: Sequence[tf.Variable],
        gradients: Sequence[tf.Tensor],
        slots: Sequence[tf.Variable],
        learning_rate: float | tf.Tensor,
    ) -> None:
        """One step, in place.

        Args:
            weights: changed; float32.
            gradients: one a weight, dense; clipped and with the proximal term already.
            slots: from `make_slots` of the same weights; changed.
            learning_rate: η.
        """
        count = len(weights)
        if self.name == "sgd":
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.assign(weight - learning_rate * gradient)
        elif self.name == "momentum":
            for weight, gradient, velocity in zip(weights, gradients, slots, strict=True):
                new = velocity * self.momentum - learning_rate * gradient
                velocity.assign(new)
                weight.assign(weight + new)
        else:
            step = slots[-1] + 1.0
            slots[-1].assign(step)
            rate = learning_rate * tf.sqrt(1.0 - tf.pow(self.beta_2, step)) / (1.0 - tf.pow(self.beta_1, step))
            for weight, gradient, first, second in zip(weights, gradients, slots[:count], slots[count:-1], strict=True):
                m = first + (gradient - first) * (1 - self.beta_1)
                v = second + (gradient * gradient - second) * (1 - self.beta_2)
                first.assign(m)
                second.assign(v)
                weight.assign(weight - m * rate / (tf.sqrt(v) + self.epsilon))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> ClientOptimizer:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is not an object with these fields, or a field is out of range.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(value, dict) or set(value) != names:
            raise ValueError(f"optimizer: expected an object with {', '.join(sorted(names))}")
        return cls(**value)


def _sum_of_squares(values: tf.Tensor) -> tf.Tensor:
    """Σ values², float32 []; as a matrix product, since TensorFlow Lite sums a large tensor slowly."""
    return tf.reshape(tf.matmul(tf.reshape(values, [1, -1]), tf.reshape(values, [-1, 1])), [])


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def _check(holds: bool, field: str, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"optimizer: {field} should be {expected}, not {got!r}")


PLAIN_SGD = ClientOptimizer()
