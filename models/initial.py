"""Initial weights: the same for the same seed, so that a simulation and a fleet can start alike."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from models.spec import ModelSpec
from models.state import trained_variables


def seeded_model(spec: ModelSpec, seed: int) -> tf.keras.Model:
    """A fresh model whose initial weights follow from `seed` alone."""
    tf.keras.utils.set_random_seed(seed % 2**32)  # numpy's legacy generator takes no more bits; our seeds have 53
    return spec.build()


def tensor_names(model: tf.keras.Model) -> tuple[str, ...]:
    """``layer/weight`` of each trained variable, in the model's order: the names in manifests and weight files.

    Keras lets two layers share a name; a name that is taken gets a number.
    """
    names: list[str] = []
    for variable in trained_variables(model):
        name = plain = variable.name.split(":")[0]
        number = 1
        while name in names:
            name = f"{plain}_{number}"
            number += 1
        names.append(name)
    return tuple(names)


def initial_weights(spec: ModelSpec, seed: int) -> tuple[Any, ...]:
    """The trained variables of `seeded_model` as float32 arrays, in the model's order."""
    return tuple(variable.numpy() for variable in trained_variables(seeded_model(spec, seed)))
