"""Recurrent layers, written out step by step, in the form that the device's interpreter computes fastest.

Keras runs them in loops that TFLite can't differentiate. Here every step is written out. The product of the inputs
with their weights is one for all steps; the states are kept as [units, B], so that the recurrent weights are the
left operand of each step's product (see `export.lowering.products`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from export.errors import ExportError
from export.replay import trace
from models.layers import PeepholeLSTMCell
from models.state import all_layers

State = tuple[tf.Tensor | None, ...]
"""A cell's state, [units, B] each; None stands for zeros."""
Step = Callable[[tf.Tensor, State], State]
"""From a step's inputs, times their weights, [gates · units, B], and the state to the next state, output first."""


@contextmanager
def written_out(model: tf.keras.Model) -> Iterator[None]:
    """Within it, the model's recurrent layers are written out when they are called; to be held during a trace.

    Raises:
        ExportError: on entering, if a recurrent layer is of a kind that has no such form.
    """
    layers = [layer for layer in all_layers(model) if isinstance(layer, tf.keras.layers.RNN)]
    for layer in layers:
        _check(layer)
    kept = [(layer, layer.unroll) for layer in layers]
    for layer in layers:
        layer.unroll = True
        if type(layer.cell) in _CELLS:
            layer.call = _call(layer)
        elif hasattr(layer, "_could_use_gpu_kernel"):
            layer._could_use_gpu_kernel = False
    try:
        yield
    finally:
        for layer, unroll in kept:
            layer.unroll = unroll
            layer.__dict__.pop("call", None)


def trace_model(model: tf.keras.Model, function: Callable[..., Any], specs: Sequence[tf.TensorSpec]) -> Any:
    """The graph of a function that calls the model, with recurrent layers written out."""

    def written(*values: tf.Tensor) -> Any:
        with written_out(model):
            return function(*values)

    return trace(written, specs)


def _check(layer: Any) -> None:
    reasons = {
        "stateful=True": layer.stateful,
        "time_major=True": getattr(layer, "time_major", False),
        "dropout inside of the cell": any(getattr(layer.cell, name, 0.0) for name in ("dropout", "recurrent_dropout")),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ExportError(
                f"layer {layer.name!r}: {type(layer).__name__} with {reason} can't be trained on a device;"
                " leave it off, and put a Dropout layer behind it if it is needed"
            )


def _call(layer: Any) -> Callable[..., Any]:
    def call(
        inputs: tf.Tensor, mask: Any = None, training: Any = None, initial_state: Any = None, constants: Any = None
    ) -> Any:
        if mask is not None or constants is not None:
            raise ExportError(
                f"layer {layer.name!r}: a mask can't be trained on a device; set mask_zero=False, pad instead"
            )
        steps = inputs.shape[1]
        if steps is None:
            raise ExportError(f"layer {layer.name!r}: the number of steps is free; give the model's Input a full shape")
        make, states = _CELLS[type(layer.cell)]
        step, weights, bias = make(layer.cell)
        step = tf.function(step, autograph=False)  # traced once for the first step, and once for all others
        state: State = (None,) * states
        if initial_state is not None:
            given = initial_state if isinstance(initial_state, list | tuple) else [initial_state]
            state = tuple(tf.transpose(value) for value in given)
        order = range(steps - 1, -1, -1) if layer.go_backwards else range(steps)
        projected = _projected(inputs, weights, bias, steps)
        outputs = []
        for t in order:
            state = step(projected[t], state)
            outputs.append(state[0])
        result = tf.transpose(tf.stack(outputs), [2, 0, 1]) if layer.return_sequences else tf.transpose(outputs[-1])
        return [result, *(tf.transpose(value) for value in state)] if layer.return_state else result

    return call


def _projected(x: tf.Tensor, weights: tf.Tensor, bias: tf.Tensor | None, steps: int) -> list[tf.Tensor]:
    """x [B, T, inputs] times weights [inputs, n], plus bias, as T tensors [n, B]."""
    flat = tf.matmul(tf.reshape(x, [-1, int(x.shape[2])]), weights)
    if bias is not None:
        flat = flat + bias
    steps_first = tf.transpose(tf.reshape(flat, [-1, steps, int(weights.shape[1])]), [1, 2, 0])
    return list(tf.unstack(steps_first))


def _added(projected: tf.Tensor, recurrent: tf.Tensor, h: tf.Tensor | None) -> tf.Tensor:
    """The inputs' share plus recurrentᵀ · h."""
    return projected if h is None else projected + tf.matmul(recurrent, h)


def _column(vector: tf.Tensor) -> tf.Tensor:
    return tf.reshape(vector, [-1, 1])


def _lstm(cell: Any) -> tuple[Step, tf.Tensor, tf.Tensor | None]:
    """Gates in the order i, f, c, o, as in Keras."""
    recurrent = tf.transpose(tf.convert_to_tensor(cell.recurrent_kernel))
    gate, activation = cell.recurrent_activation, cell.activation

    def step(projected: tf.Tensor, state: State) -> State:
        h, c = state
        i, f, new, o = tf.split(_added(projected, recurrent, h), 4, axis=0)
        c_next = gate(i) * activation(new)
        if c is not None:
            c_next = gate(f) * c + c_next
        return gate(o) * activation(c_next), c_next

    return step, tf.convert_to_tensor(cell.kernel), cell.bias if cell.use_bias else None


def _peephole_lstm(cell: PeepholeLSTMCell) -> tuple[Step, tf.Tensor, tf.Tensor | None]:
    recurrent = tf.transpose(tf.convert_to_tensor(cell.recurrent_kernel))
    see_i, see_f, see_o = (
        _column(tf.convert_to_tensor(p)) for p in (cell.input_peephole, cell.forget_peephole, cell.output_peephole)
    )

    def step(projected: tf.Tensor, state: State) -> State:
        h, c = state
        i, f, new, o = tf.split(_added(projected, recurrent, h), 4, axis=0)
        if c is None:
            c_next = tf.sigmoid(i) * tf.tanh(new)
        else:
            c_next = tf.sigmoid(f + see_f * c) * c + tf.sigmoid(i + see_i * c) * tf.tanh(new)
        return tf.sigmoid(o + see_o * c_next) * tf.tanh(c_next), c_next

    return step, tf.convert_to_tensor(cell.kernel), tf.convert_to_tensor(cell.bias)


def _gru(cell: Any) -> tuple[Step, tf.Tensor, tf.Tensor | None]:
    """Gates in the order z, r, h, as in Keras; with reset_after the reset gate is applied after the product."""
    gate, activation, units = cell.recurrent_activation, cell.activation, cell.units
    recurrent = tf.convert_to_tensor(cell.recurrent_kernel)
    bias, recurrent_bias = None, None
    if cell.use_bias:
        both = tf.convert_to_tensor(cell.bias)
        bias = both[0] if cell.reset_after else both
        recurrent_bias = _column(both[1]) if cell.reset_after else None
    if cell.reset_after:
        whole = tf.transpose(recurrent)
    else:
        gates_part, new_part = (tf.transpose(part) for part in tf.split(recurrent, [2 * units, units], axis=1))

    def step(projected: tf.Tensor, state: State) -> State:
        (h,) = state
        z, r, new = tf.split(projected, 3, axis=0)
        if h is None and recurrent_bias is None:
            new = activation(new)
            return (new - gate(z) * new,)
        if cell.reset_after:
            inner = recurrent_bias if h is None else tf.matmul(whole, h)
            if h is not None and recurrent_bias is not None:
                inner = inner + recurrent_bias
            inner_z, inner_r, inner_new = tf.split(inner, 3, axis=0)
            z, r = gate(z + inner_z), gate(r + inner_r)
            new = activation(new + r * inner_new)
        else:
            inner_z, inner_r = tf.split(tf.matmul(gates_part, h), 2, axis=0)
            z, r = gate(z + inner_z), gate(r + inner_r)
            new = activation(new + tf.matmul(new_part, r * h))
        return (new - z * new if h is None else new + z * (h - new),)

    return step, tf.convert_to_tensor(cell.kernel), bias


def _simple(cell: Any) -> tuple[Step, tf.Tensor, tf.Tensor | None]:
    recurrent = tf.transpose(tf.convert_to_tensor(cell.recurrent_kernel))

    def step(projected: tf.Tensor, state: State) -> State:
        return (cell.activation(_added(projected, recurrent, state[0])),)

    return step, tf.convert_to_tensor(cell.kernel), cell.bias if cell.use_bias else None


_Make = Callable[[Any], tuple[Step, tf.Tensor, tf.Tensor | None]]
_CELLS: dict[type, tuple[_Make, int]] = {
    tf.keras.layers.LSTMCell: (_lstm, 2),
    tf.keras.layers.GRUCell: (_gru, 1),
    tf.keras.layers.SimpleRNNCell: (_simple, 1),
    PeepholeLSTMCell: (_peephole_lstm, 2),
}
"""Cell → how to write out a step of it, and how many states it has."""
