"""Training losses by name, from logits, one value an example."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf


def sparse_categorical_crossentropy(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """−log softmax(logits)[y]; y int32 [B], logits float32 [B, classes]; float32 [B]."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)


LOSSES: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "sparse_categorical_crossentropy": sparse_categorical_crossentropy,
}
