"""What Keras would train and a training step here would not, so that whoever takes a model can refuse it."""

from __future__ import annotations

import tensorflow as tf

from models.state import all_layers

CLASS_LOSSES = ("sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy")
"""The losses over classes, which are computed from logits."""
_SQUASHING = {"softmax", "sigmoid"}


def omission(model: tf.keras.Model, loss: str) -> str | None:
    """In one line, why training would be other than is meant: a regularizer, or a softmax before a loss of logits.

    Args:
        model: with its layers built.
        loss: a key of `models.losses.LOSSES`.

    Returns:
        None where there is nothing.
    """
    regularised = [layer.name for layer in all_layers(model) if layer.losses or layer.activity_regularizer]
    if regularised:
        return f"layer {regularised[0]!r}: its regularizer is no part of what a device trains; leave it out"
    last = model.layers[-1]
    squashed = getattr(getattr(last, "activation", None), "__name__", "")
    if isinstance(last, tf.keras.layers.Softmax):
        squashed = "softmax"
    if loss in CLASS_LOSSES and squashed in _SQUASHING:
        return f"layer {last.name!r}: ends in {squashed}; {loss} is computed from logits: leave {squashed} out"
    return None
