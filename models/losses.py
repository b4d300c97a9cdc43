"""Training losses by name, from logits, one value a prediction.

A model predicts once an example, or, over a sequence, once a step: the losses have the shape [B] or [B, T], and so
have labels that are classes. Values equal Keras's own losses with ``from_logits=True``; for those over several
outputs a prediction (all but the two categorical ones) they are the mean over the last axis.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf


def sparse_categorical_crossentropy(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """−log softmax(logits)[y]; y int32 [B] or [B, T], logits float32 [..., classes]; float32 [B] or [B, T]."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)


def categorical_crossentropy(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """−Σ y·log softmax(logits); y and logits float32 [..., classes]; float32 [...]."""
    return tf.nn.softmax_cross_entropy_with_logits(y, logits)


def binary_crossentropy(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """−y·log σ(logits) − (1 − y)·log(1 − σ(logits)), the mean over the outputs; y from 0 to 1."""
    y, logits = same_shape(y, logits)
    return output_mean(tf.nn.sigmoid_cross_entropy_with_logits(y, logits))


def mean_squared_error(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """(logits − y)², the mean over the outputs."""
    y, logits = same_shape(y, logits)
    return output_mean(tf.square(logits - y))


def mean_absolute_error(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """|logits − y|, the mean over the outputs."""
    y, logits = same_shape(y, logits)
    return output_mean(tf.abs(logits - y))


def huber(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """e²/2 where e = |logits − y| is at most 1, e − 1/2 elsewhere (Huber 1964, δ = 1), the mean over the outputs."""
    y, logits = same_shape(y, logits)
    error = tf.abs(logits - y)
    return output_mean(tf.where(error <= 1.0, 0.5 * tf.square(error), error - 0.5))


LOSSES: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "binary_crossentropy": binary_crossentropy,
    "categorical_crossentropy": categorical_crossentropy,
    "huber": huber,
    "mean_absolute_error": mean_absolute_error,
    "mean_squared_error": mean_squared_error,
    "sparse_categorical_crossentropy": sparse_categorical_crossentropy,
}


def same_shape(y: tf.Tensor, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Labels and logits in float32 and in one shape: a label [B] belongs to logits [B, 1], and the other way round.

    Raises:
        ValueError: their shapes belong to each other in neither way. Broadcasting would compare each label with
            every prediction instead.
    """
    y, logits = tf.cast(y, tf.float32), tf.convert_to_tensor(logits)
    shape, other = y.shape, logits.shape
    if shape.rank == other.rank - 1:
        y = y[..., tf.newaxis]
    elif other.rank == shape.rank - 1:
        logits = logits[..., tf.newaxis]
    if not y.shape.is_compatible_with(logits.shape):
        raise ValueError(f"labels of shape {shape} don't fit logits of shape {other}")
    return y, logits


def output_mean(values: tf.Tensor) -> tf.Tensor:
    """The mean over the outputs of a prediction, the last axis; values [B] are a prediction each already."""
    return values if values.shape.rank == 1 else tf.reduce_mean(values, axis=-1)
