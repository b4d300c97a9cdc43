"""The Keras model in a client's computation, without the initial values that nobody looks at.

TFF initialises a computation's variables whenever it is called, so for every client of every round, and the weights are
overwritten at once. To draw them at random took a seventh of the worker's time in a round of the 2NN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from device_runtime.errors import InputError
from device_runtime.tensors import Weights, describe
from models import ModelSpec, trained_variables
from models.omissions import omission


def client_model_builder(spec: ModelSpec) -> Callable[[], tf.keras.Model]:
    """`spec.build` for graphs, but that trained variables are zero at first; those of frozen layers keep their values.

    Which variables are trained is known of a model that is there: so one is built here, in a graph of its own, since
    Keras makes further variables outside of one.
    """
    created: list[tf.Variable] = []

    def record(next_creator: Callable[..., tf.Variable], **options: Any) -> tf.Variable:
        created.append(next_creator(**options))
        return created[-1]

    with tf.Graph().as_default(), tf.variable_creator_scope(record):
        trained = {id(variable) for variable in trained_variables(spec.build())}
    overwritten = [id(variable) in trained for variable in created]  # in the order in which a model makes them
    shapes = [(variable.shape, variable.dtype) for variable in created]

    def build() -> tf.keras.Model:
        number = -1

        def replace(next_creator: Callable[..., tf.Variable], **options: Any) -> tf.Variable:
            nonlocal number
            number += 1
            if number < len(created) and overwritten[number]:
                options["initial_value"] = lambda: tf.zeros(*shapes[number])
            return next_creator(**options)

        with tf.variable_creator_scope(replace):
            return spec.build()

    return build


def require_trainable(spec: ModelSpec, initial_weights: Weights) -> None:
    """What TensorFlow would tell in the midst of AutoGraph, or not at all, in one line.

    Raises:
        InputError: it is no `ModelSpec`; its `build` does not make a new model each time; Keras would train the model
            otherwise (`models.omissions`); or the weights are not its own by number, type and shape.
    """
    if not isinstance(spec, ModelSpec):
        raise InputError(f"expected a ModelSpec, such as models.get('digits_mlp'), not {spec!r}")
    created: set[int] = set()

    def record(next_creator: Callable[..., tf.Variable], **options: Any) -> tf.Variable:
        variable = next_creator(**options)
        created.add(id(variable))
        return variable

    with tf.Graph().as_default(), tf.variable_creator_scope(record):
        model = spec.build()
        variables = trained_variables(model)
        if not all(id(variable) in created for variable in variables):
            raise InputError(
                f"model {spec.name!r}: build gives a model that was there before; it should make a new one each time"
            )
        fault = omission(model, spec.loss)
    if fault is not None:
        raise InputError(f"model {spec.name!r}: {fault}")
    expected = [f"{variable.dtype.name}{variable.shape.as_list()}" for variable in variables]
    given = [describe(np.asarray(value)) for value in initial_weights]
    if given != expected:
        raise InputError(
            f"model {spec.name!r}: its initial weights should be {', '.join(expected)}, as models.initial_weights gives"
            f" them, not {', '.join(given) or 'none'}"
        )
