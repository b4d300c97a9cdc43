"""The client's training step in plain TensorFlow: the reference for every other form of it.

The simulation runs this step, and the parity check holds the exported artifact against it. So there is
one definition of what a local step is, and the device's own gradients are measured against TensorFlow's.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from models.dropout import seeded_dropout
from models.losses import LOSSES
from models.metrics import METRICS
from models.spec import ModelSpec


def client_step(
    spec: ModelSpec,
    model: tf.keras.Model,
    slots: Sequence[tf.Variable],
    x: tf.Tensor,
    y: tf.Tensor,
    learning_rate: float | tf.Tensor,
    proximal: float = 0.0,
    anchors: Sequence[tf.Tensor] = (),
    seed: int | tf.Tensor = 0,
) -> tf.Tensor:
    """One local step on a batch, in place; for use inside a `tf.function`.

    The loss's gradient is clipped, then the pull of the proximal term is added, then the optimiser steps. Keras itself
    moves the statistics of batch normalisation; they have no gradient, no pull and no optimiser.

    Args:
        spec: of the model; names the loss and the optimiser.
        model: its trained variables are changed.
        slots: the optimiser's state, from `spec.optimizer.make_slots(model.trainable_variables)`; changed. To be reset
            at the start of each client's round.
        x, y: a batch of B examples, as `spec.input` and `spec.label` say.
        learning_rate: η.
        proximal: μ of FedProx's term μ/2·‖w − anchor‖² (Li et al. 2020); the term is left out at 0.
        anchors: the `trained_variables` that the round started from; needed with a proximal term only.
        seed: of the dropout masks, int32 [], not negative; `device_runtime.work.step_seeds` gives a client's. A model
            without dropout does not look at it.

    Returns:
        The batch's mean loss over all predictions before the step, without the proximal term; float32 [].
    """
    weights = model.trainable_variables
    with tf.GradientTape() as tape:
        with seeded_dropout(model, seed):
            logits = model(x, training=True)
        loss = tf.reduce_mean(LOSSES[spec.loss](y, logits))
    # An embedding's gradient comes as the rows that the batch used; the formulas are for whole tensors.
    gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, weights)]
    gradients = spec.optimizer.clip(gradients)
    if proximal:
        pulled = anchors[: len(weights)]
        gradients = [g + proximal * (w - a) for g, w, a in zip(gradients, weights, pulled, strict=True)]
    spec.optimizer.apply(weights, gradients, slots, learning_rate)
    return loss


def evaluation_sums(
    spec: ModelSpec, model: tf.keras.Model, x: tf.Tensor, y: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Sums of loss and metric over the predictions for a batch, and their number; three float32 [].

    A sequence of 80 steps counts 80.
    """
    return prediction_sums(spec, y, model(x, training=False))


def prediction_sums(spec: ModelSpec, y: tf.Tensor, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`evaluation_sums` of logits that are known already."""
    losses = LOSSES[spec.loss](y, logits)
    measured = METRICS[spec.metric](spec.loss, y, logits)
    return tf.reduce_sum(losses), tf.reduce_sum(measured), tf.cast(tf.size(losses), tf.float32)
