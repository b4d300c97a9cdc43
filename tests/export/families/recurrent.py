"""Embeddings and recurrent layers: each cell alone, stacked, in both directions, with and without all its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from models.layers import PeepholeLSTMCell
from tests.export.families.family import branches, chain
from tests.export.parity_case import Row

keras = tf.keras.layers


def _peephole(units: int, **options: Any) -> Any:
    return keras.RNN(PeepholeLSTMCell(units), **options)


def _gru_before(units: int, **options: Any) -> Any:
    return keras.GRU(units, reset_after=False, **options)


def _stacked(make: Callable[..., Any]) -> Row:
    return lambda x: chain(x, make(4, return_sequences=True), make(3))


def _sequences(make: Callable[..., Any]) -> Row:
    return lambda x: chain(x, make(3, return_sequences=True, go_backwards=True))


_CELLS: dict[str, Callable[..., Any]] = {
    "simple": keras.SimpleRNN, "lstm": keras.LSTM, "gru": keras.GRU, "gru_reset_before": _gru_before,
    "peephole": _peephole,
}  # fmt: skip


def _with_states(x: Any) -> Any:
    outputs, h, c = keras.LSTM(4, return_state=True, return_sequences=True)(x)
    return keras.LSTM(4)(outputs, initial_state=[h, c])


def _gru_with_state(x: Any) -> Any:
    output, state = keras.GRU(4, return_state=True)(x)
    return keras.Add()([keras.GRU(4)(x, initial_state=state), output])


FAMILIES = {
    "recurrent": branches(
        (3, 3),
        {
            **{name: _stacked(make) for name, make in _CELLS.items()},
            **{f"{name}_sequences": _sequences(make) for name, make in _CELLS.items()},
        },
    ),
    "recurrent_kinds": branches(
        (3, 3),
        {
            "bidirectional": lambda x: chain(
                x,
                keras.Bidirectional(keras.LSTM(4, return_sequences=True)),
                keras.Bidirectional(keras.GRU(3), merge_mode="sum"),
            ),
            "bidirectional_sequences": lambda x: chain(
                x, keras.Bidirectional(keras.GRU(3, return_sequences=True), merge_mode="mul")
            ),
            "cells": lambda x: keras.RNN([keras.LSTMCell(4), keras.GRUCell(3)])(x),
            "relu": lambda x: chain(x, keras.SimpleRNN(4, "relu", return_sequences=True), keras.LSTM(3, "relu")),
            "no_bias": lambda x: chain(x, keras.GRU(4, use_bias=False, return_sequences=True), keras.LSTM(3)),
            "states": _with_states,
            "gru_state": _gru_with_state,
        },
    ),
    "embedding": branches(
        (7,),
        {
            "flat": lambda x: keras.Embedding(5, 4)(x),
            "recurrent": lambda x: chain(x, keras.Embedding(5, 4), keras.LSTM(3)),
            "averaged": lambda x: chain(x, keras.Embedding(5, 4), keras.GlobalAveragePooling1D()),
            "convolved": lambda x: chain(x, keras.Embedding(5, 6), keras.Conv1D(4, 3)),
        },
        symbols=5,  # so that every batch has repeated ones
    ),
}
