"""Attention, and a small Transformer block."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tests.export.families.family import branches, chain

keras = tf.keras.layers


def _self_attention(x: Any) -> Any:
    y = keras.Dense(8)(x)
    return keras.MultiHeadAttention(2, 4)(y, y)


def _causal(x: Any) -> Any:
    y = keras.Dense(8)(x)
    return keras.MultiHeadAttention(2, 3, value_dim=5, output_shape=6)(y, y, use_causal_mask=True)


def _cross(x: Any) -> Any:
    return keras.MultiHeadAttention(2, 4, use_bias=False)(keras.Dense(6)(x), keras.Dense(5, "tanh")(x))


def _block(x: Any) -> Any:
    y = keras.Dense(8)(x)
    y = keras.LayerNormalization()(keras.Add()([y, keras.MultiHeadAttention(2, 4)(y, y)]))
    inner = chain(y, keras.Dense(16, "gelu"), keras.Dense(8))
    return keras.LayerNormalization()(keras.Add()([y, inner]))


def _dot_product(x: Any) -> Any:
    return keras.Attention(use_scale=True)([keras.Dense(4)(x), keras.Dense(4)(x)])


def _additive(x: Any) -> Any:
    return keras.AdditiveAttention()([keras.Dense(4)(x), keras.Dense(4)(x)])


FAMILIES = {
    "attention": branches(
        (5, 8),
        {
            "self": _self_attention,
            "causal": _causal,
            "cross": _cross,
            "transformer": _block,
            "dot_product": _dot_product,
            "additive": _additive,
        },
    )
}
