"""The training losses of `models.losses`, each with its gradient by the logits, in TFLite builtins."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

LossAndGradient = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def sparse_categorical_crossentropy(y: tf.Tensor, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Losses −log softmax(logits)[y], float32 [B], and their gradients softmax(logits) − onehot(y), [B, classes]."""
    one_hot = tf.one_hot(y, logits.shape[-1])
    losses = -tf.reduce_sum(tf.nn.log_softmax(logits) * one_hot, axis=-1)
    return losses, tf.nn.softmax(logits) - one_hot


LOSSES: dict[str, LossAndGradient] = {
    "sparse_categorical_crossentropy": sparse_categorical_crossentropy,
}
