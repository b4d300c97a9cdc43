"""Cross-entropies from logits, which TensorFlow computes in one operator each."""

from __future__ import annotations

import tensorflow as tf

from export.lowering.call import Call, Lowered, lowering


@lowering("SparseSoftmaxCrossEntropyWithLogits")
def _sparse(call: Call) -> Lowered:
    logits, labels = call.inputs
    return _cross_entropy(logits, tf.one_hot(tf.cast(labels, tf.int32), logits.shape[-1]))


@lowering("SoftmaxCrossEntropyWithLogits")
def _dense(call: Call) -> Lowered:
    return _cross_entropy(*call.inputs)


def _cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> Lowered:
    """Losses −Σ labels · log softmax(logits), [n], of [n, classes]; their gradient is softmax(logits) − labels."""
    losses = -tf.reduce_sum(tf.nn.log_softmax(logits) * labels, axis=-1)
    by_logits = tf.nn.softmax(logits) - labels
    return Lowered((losses, by_logits), lambda dy, _: (tf.expand_dims(dy, -1) * by_logits, None))
