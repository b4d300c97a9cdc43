"""What a round changes and what travels: the trained state of a model."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def trained_variables(model: tf.keras.Model) -> list[Any]:
    """The variables that training changes, in the order of every weight file and update.

    First the trainable weights in Keras's order, then moving mean and variance of each BatchNormalization layer
    that is trainable: gradients don't reach these, but training steps do. A frozen layer's never change: they come
    with the model, like every other weight that is not trained.
    """
    moving = {
        variable.ref()
        for layer in all_layers(model)
        if isinstance(layer, tf.keras.layers.BatchNormalization) and layer.trainable
        for variable in (layer.moving_mean, layer.moving_variance)
    }
    return [*model.trainable_variables, *(v for v in model.non_trainable_variables if v.ref() in moving)]


def all_layers(model: tf.keras.Model) -> list[Any]:
    """The layers of a model, those inside of others included: nested models, wrappers, cells, attention.

    Keras has no public way to them: `tf.Module.submodules` fails at a GRU with dropout, whose cache it can't read.
    """
    return list(model._flatten_layers(include_self=False))
