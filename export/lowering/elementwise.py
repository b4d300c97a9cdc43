"""Arithmetic and activations, element by element.

Masks are made with `sign`: comparisons are slow in tflite-runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

from export.lowering.call import Call, Lowered, emit, lowering, one, single
from export.lowering.shapes import unbroadcast


def positive(x: tf.Tensor) -> tf.Tensor:
    """1 where x > 0, otherwise 0."""
    return tf.sign(tf.nn.relu(x))


def _unary(kind: str, gradient: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]) -> None:
    """A builtin y of x; `gradient` takes (dy, x, y)."""

    @lowering(kind)
    def lower(call: Call) -> Lowered:
        (x,), y = call.inputs, single(call)
        return one(y, lambda dy: gradient(dy, x, y))


# A number minus a tensor is slow in tflite-runtime, so 1 − y is multiplied out.
_unary("Relu6", lambda dy, x, y: dy * tf.sign(y) * tf.sign(6.0 - y))
_unary("Elu", lambda dy, x, y: dy - dy * tf.nn.relu(-y))
_unary("Sigmoid", lambda dy, x, y: dy * y - dy * y * y)
_unary("Tanh", lambda dy, x, y: dy - dy * y * y)
_unary("Exp", lambda dy, x, y: dy * y)
_unary("Log", lambda dy, x, y: dy / x)
_unary("Sqrt", lambda dy, x, y: 0.5 * dy / y)
_unary("Rsqrt", lambda dy, x, y: -0.5 * dy * y / x)
_unary("Square", lambda dy, x, y: 2.0 * dy * x)
_unary("Abs", lambda dy, x, y: dy * tf.sign(x))
_unary("Sin", lambda dy, x, y: dy * tf.cos(x))
_unary("Cos", lambda dy, x, y: -dy * tf.sin(x))


@lowering("Relu")
def _relu(call: Call) -> Lowered:
    y = single(call)
    return one(y, (lambda dy: dy) if masked_by_pooling(call.op) else (lambda dy: dy * tf.sign(y)))


def masked_by_pooling(op: tf.Operation) -> bool:
    """Whether an operator is a ReLU whose gradient the maximum poolings after it mask, where it is smaller.

    A window's maximum is 0 exactly where ReLU passes nothing on to any of its elements.
    """
    if op.type != "Relu":
        return False
    (y,) = op.outputs
    consumers = y.consumers()
    return bool(consumers) and all(c.type == "MaxPool" for c in consumers) and all(y is not o for o in op.graph.outputs)


@lowering("Neg")
def _neg(call: Call) -> Lowered:
    return one(single(call), tf.negative)


@lowering("LeakyRelu")
def _leaky_relu(call: Call) -> Lowered:
    (x,) = call.inputs
    alpha = float(call.attr("alpha"))
    return one(single(call), lambda dy: dy * (alpha + (1.0 - alpha) * positive(x)))


@lowering("Selu")
def _selu(call: Call) -> Lowered:
    """TFLite has no SELU. Constants: Klambauer et al. 2017, section 2."""
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    (x,) = call.inputs
    y = scale * tf.nn.relu(x) + scale * alpha * (tf.exp(tf.minimum(x, 0.0)) - 1.0)
    return one(y, lambda dy: dy * (scale + (y + scale * (alpha - 1.0)) * positive(-x)))


@lowering("Softplus")
def _softplus(call: Call) -> Lowered:
    """log(1 + eˣ), written so that eˣ can't overflow; TFLite has no SOFTPLUS."""
    (x,) = call.inputs
    y = tf.nn.relu(x) + tf.math.log(1.0 + tf.exp(-tf.abs(x)))
    return one(y, lambda dy: dy * tf.sigmoid(x))


@lowering("Softsign")
def _softsign(call: Call) -> Lowered:
    (x,) = call.inputs
    scale = 1.0 / (1.0 + tf.abs(x))
    return one(x * scale, lambda dy: dy * scale * scale)


@lowering("Log1p")
def _log1p(call: Call) -> Lowered:
    (x,) = call.inputs
    return one(tf.math.log(1.0 + x), lambda dy: dy / (1.0 + x))


@lowering("Expm1")
def _expm1(call: Call) -> Lowered:
    (x,) = call.inputs
    y = tf.exp(x)
    return one(y - 1.0, lambda dy: dy * y)


@lowering("Erf")
def _erf(call: Call) -> Lowered:
    """Abramowitz and Stegun 1964, 7.1.26: error at most 1.5e-7. TFLite has no ERF."""
    (x,) = call.inputs
    size = tf.abs(x)
    t = 1.0 / (1.0 + 0.3275911 * size)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    bell = tf.exp(-x * x)
    return one(tf.sign(x) * (1.0 - series * bell), lambda dy: dy * (2.0 / math.sqrt(math.pi) * bell))


@lowering("Reciprocal", "Inv")
def _reciprocal(call: Call) -> Lowered:
    (x,) = call.inputs
    y = 1.0 / x
    return one(y, lambda dy: -dy * y * y)


@lowering("Pow")
def _pow(call: Call) -> Lowered:
    """Powers with a constant exponent; small whole ones as products, because POW is slow."""
    x = call.inputs[0]
    exponent = float(call.constant(1)) if call.constant(1).size == 1 and not call.varies[1] else None
    if exponent is None:
        call.refuse("an exponent that is trained or no number", "use a constant exponent, or exp and log")
    return one(_power(x, exponent), lambda dy: (dy * exponent * _power(x, exponent - 1.0), None))


def _power(x: tf.Tensor, exponent: float) -> tf.Tensor:
    if exponent in (1.0, 2.0, 3.0):
        return {1.0: x, 2.0: x * x, 3.0: x * x * x}[exponent]
    return tf.pow(x, exponent)


Partial = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def _binary(kinds: tuple[str, ...], by_first: Partial, by_second: Partial) -> None:
    """A builtin of two broadcast operands; each partial takes (dy, first, second) and gives dy's share."""

    @lowering(*kinds)
    def lower(call: Call) -> Lowered:
        a, b = call.inputs
        return one(
            single(call),
            lambda dy: (
                unbroadcast(by_first(dy, a, b), a) if call.varies[0] else None,
                unbroadcast(by_second(dy, a, b), b) if call.varies[1] else None,
            ),
        )


_binary(("Add", "AddV2"), lambda dy, a, b: dy, lambda dy, a, b: dy)
_binary(("Sub",), lambda dy, a, b: dy, lambda dy, a, b: -dy)
_binary(("Mul",), lambda dy, a, b: dy * b, lambda dy, a, b: dy * a)
_binary(("RealDiv", "Div"), lambda dy, a, b: dy / b, lambda dy, a, b: -dy * a / (b * b))
# At a tie the whole gradient goes to the first operand, as in TensorFlow.
_binary(("Maximum",), lambda dy, a, b: dy - dy * positive(b - a), lambda dy, a, b: dy * positive(b - a))
_binary(("Minimum",), lambda dy, a, b: dy - dy * positive(a - b), lambda dy, a, b: dy * positive(a - b))


@lowering("SquaredDifference")
def _squared_difference(call: Call) -> Lowered:
    a, b = call.inputs
    difference = a - b

    def pullback(dy: tf.Tensor) -> tuple[tf.Tensor | None, tf.Tensor | None]:
        twice = 2.0 * dy * difference
        return (
            unbroadcast(twice, a) if call.varies[0] else None,
            unbroadcast(-twice, b) if call.varies[1] else None,
        )

    return one(difference * difference, pullback)


@lowering("DivNoNan")
def _div_no_nan(call: Call) -> Lowered:
    """a / b, and 0 where b is."""
    a, b = call.inputs
    there = tf.abs(tf.sign(b))
    inverse = there / (b + (1.0 - there))
    return one(
        a * inverse,
        lambda dy: (
            unbroadcast(dy * inverse, a) if call.varies[0] else None,
            unbroadcast(-dy * a * inverse * inverse, b) if call.varies[1] else None,
        ),
    )


@lowering("AddN")
def _add_n(call: Call) -> Lowered:
    return one(single(call), lambda dy: (dy,) * len(call.inputs))


@lowering("BiasAdd")
def _bias_add(call: Call) -> Lowered:
    if call.attr("data_format") != b"NHWC":
        call.refuse("channels first", "use data_format='channels_last'")
    x, b = call.inputs
    return one(x + b, lambda dy: (dy, tf.reduce_sum(dy, list(range(len(dy.shape) - 1))) if call.varies[1] else None))


@lowering("Select", "SelectV2")
def _select(call: Call) -> Lowered:
    condition, a, b = call.inputs

    def pullback(dy: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
        chosen = tf.cast(condition, dy.dtype)
        return (
            None,
            unbroadcast(dy * chosen, a) if call.varies[1] else None,
            unbroadcast(dy - dy * chosen, b) if call.varies[2] else None,
        )

    return one(single(call), pullback)


@lowering("Softmax")
def _softmax(call: Call) -> Lowered:
    (y,) = emit(call)
    return one(y, lambda dy: y * (dy - tf.reduce_sum(dy * y, -1, keepdims=True)))


@lowering("LogSoftmax")
def _log_softmax(call: Call) -> Lowered:
    (y,) = emit(call)
    return one(y, lambda dy: dy - tf.exp(y) * tf.reduce_sum(dy, -1, keepdims=True))
