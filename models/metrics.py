"""Evaluation metrics by name, from logits, one value a prediction: their mean is the metric."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from models import losses


def accuracy(loss: str, y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """1 where a prediction is right, else 0.

    Right is, as the loss has it: the largest logit is the label's (`sparse_categorical_crossentropy`), or that of
    the largest label (`categorical_crossentropy`); or the share of outputs whose logit is above 0 where the label is
    above ½ and only there (`binary_crossentropy`).

    Args:
        loss: the name of the training loss, which says what labels are.
        y, logits: as that loss takes them.

    Raises:
        ValueError: the loss does not tell right from wrong.
    """
    if loss == "sparse_categorical_crossentropy":
        return tf.cast(tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), tf.cast(y, tf.int32)), tf.float32)
    if loss == "categorical_crossentropy":
        return tf.cast(tf.equal(tf.argmax(logits, axis=-1), tf.argmax(y, axis=-1)), tf.float32)
    if loss == "binary_crossentropy":
        y, logits = losses.same_shape(y, logits)
        return losses.output_mean(tf.cast(tf.equal(logits > 0.0, y > 0.5), tf.float32))
    raise ValueError(f"the metric 'accuracy' needs a loss over classes, not {loss!r}; use 'mean_absolute_error'")


def mean_absolute_error(loss: str, y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """|logits − y|, the mean over the outputs of a prediction; the loss does not matter."""
    return losses.mean_absolute_error(y, logits)


METRICS: dict[str, Callable[[str, tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "accuracy": accuracy,
    "mean_absolute_error": mean_absolute_error,
}
