"""The Keras model in a client's computation, without the initial values that nobody looks at.

TFF initialises a computation's variables whenever it is called, so for every client of every round, and the weights are
overwritten at once. To draw them at random took a seventh of the worker's time in a round of the 2NN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from models import ModelSpec, trained_variables


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
