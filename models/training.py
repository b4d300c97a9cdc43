"""The client's training step in plain TensorFlow: the reference for every other form of it.

The simulation runs this step, and the parity check holds the exported artifact against it. So there is
one definition of what a local step is, and the device's own gradients are measured against TensorFlow's.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from models.losses import LOSSES
from models.spec import ModelSpec


def sgd_step(
    spec: ModelSpec,
    model: tf.keras.Model,
    x: tf.Tensor,
    y: tf.Tensor,
    learning_rate: float | tf.Tensor,
    proximal: float = 0.0,
    anchors: Sequence[tf.Tensor] = (),
) -> tf.Tensor:
    """One step of SGD on a batch, in place; for use inside a `tf.function`.

    Args:
        spec: of the model; names the loss.
        model: its trainable variables are changed.
        x, y: a batch of B examples, as `spec.input` and `spec.label` say.
        learning_rate: η.
        proximal: μ of FedProx's term μ/2·‖w − anchor‖² (Li et al. 2020); the term is left out at 0.
        anchors: the weights that the round started from; needed with a proximal term only.

    Returns:
        The batch's mean loss before the step, without the proximal term; float32 [].
    """
    variables = model.trainable_variables
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(LOSSES[spec.loss](y, model(x, training=True)))
    gradients = tape.gradient(loss, variables)
    if proximal:
        gradients = [g + proximal * (v - a) for g, v, a in zip(gradients, variables, anchors, strict=True)]
    for variable, gradient in zip(variables, gradients, strict=True):
        variable.assign_sub(learning_rate * gradient)
    return loss


def evaluation_sums(spec: ModelSpec, model: tf.keras.Model, x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Sum of the losses and number of right answers over a batch; two float32 []."""
    logits = model(x, training=False)
    right = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), y)
    return tf.reduce_sum(LOSSES[spec.loss](y, logits)), tf.reduce_sum(tf.cast(right, tf.float32))
