"""The word LSTM of McMahan et al. 2017, section 3, for the posts of a social network: 4,950,544 parameters."""

from __future__ import annotations

import tensorflow as tf

from models.layers import PeepholeLSTMCell
from models.spec import ModelSpec

WORDS = 10_000
STEPS = 10


def build() -> tf.keras.Model:
    """Embedding of 192, a peephole LSTM layer of 256, and for each of 10 words the logits of the next."""
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            layers.Input((STEPS,), dtype=tf.int32),
            layers.Embedding(WORDS, 192, name="embedding"),
            layers.RNN(PeepholeLSTMCell(256, name="cell"), return_sequences=True, name="lstm"),
            layers.Dense(WORDS, name="logits"),
        ],
        name="word_lstm",
    )


SPEC = ModelSpec(
    name="word_lstm",
    build=build,
    input=tf.TensorSpec((None, STEPS), tf.int32),
    label=tf.TensorSpec((None, STEPS), tf.int32),
    loss="sparse_categorical_crossentropy",
    metric="accuracy",
    source="McMahan et al. 2017 (arXiv 1602.05629), section 3, large-scale word LSTM",
)
