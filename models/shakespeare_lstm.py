"""The character LSTM of McMahan et al. 2017, section 3, for Shakespeare's plays: 866,578 parameters."""

from __future__ import annotations

import tensorflow as tf

from models.layers import PeepholeLSTMCell
from models.spec import ModelSpec

SYMBOLS = 258
"""With so many, and with peepholes, the parameters are exactly the paper's, which does not list its characters."""

STEPS = 80


def build() -> tf.keras.Model:
    """Embedding of 8, two peephole LSTM layers of 256, and for each of 80 characters the logits of the next."""
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            layers.Input((STEPS,), dtype=tf.int32),
            layers.Embedding(SYMBOLS, 8, name="embedding"),
            layers.RNN(PeepholeLSTMCell(256, name="cell"), return_sequences=True, name="lstm_1"),
            layers.RNN(PeepholeLSTMCell(256, name="cell"), return_sequences=True, name="lstm_2"),
            layers.Dense(SYMBOLS, name="logits"),
        ],
        name="shakespeare_lstm",
    )


SPEC = ModelSpec(
    name="shakespeare_lstm",
    build=build,
    input=tf.TensorSpec((None, STEPS), tf.int32),
    label=tf.TensorSpec((None, STEPS), tf.int32),
    loss="sparse_categorical_crossentropy",
    metric="accuracy",
    source="McMahan et al. 2017 (arXiv 1602.05629), section 3, Shakespeare LSTM",
)
