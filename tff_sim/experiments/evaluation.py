"""Accuracy and loss of the global model on the test set, in plain TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from device_runtime.errors import InputError
from device_runtime.examples import Examples
from device_runtime.tensors import Weights
from models import ModelSpec, trained_variables
from models.training import evaluation_sums
from tff_sim.pixels import batches

_BATCH = 500


@dataclass(frozen=True)
class TestResult:
    """Mean of the metric (for accuracy the share of right answers) and of the loss over the test set's predictions."""

    accuracy: float
    loss: float


class Evaluator:
    """Evaluates weights on a fixed test set; the model and its graph are built once."""

    def __init__(self, spec: ModelSpec, test: Examples) -> None:
        self._model = model = spec.build()
        self._test = test
        sums = tf.function(lambda x, y: evaluation_sums(spec, model, x, y), input_signature=[spec.input, spec.label])
        # Traced here and now: Keras turns its classes into those of TensorFlow 1 when TFF builds a model in a graph.
        self._sums = sums.get_concrete_function()

    def __call__(self, weights: Weights) -> TestResult:
        """Test these weights, float32, in the model's order.

        Raises:
            InputError: TensorFlow refuses an example.
        """
        for variable, value in zip(trained_variables(self._model), weights, strict=True):
            variable.assign(value)
        loss = measured = count = 0.0
        for batch in batches(self._test, _BATCH):
            try:
                sums = self._sums(tf.constant(batch.x), tf.constant(batch.y))
            except tf.errors.InvalidArgumentError as error:  # a symbol, say, that no row of an embedding is for
                said = error.message.splitlines()[0]
                raise InputError(
                    f"TensorFlow can't evaluate the test examples ({said}); do they fit the model?"
                ) from error
            loss += float(sums[0])
            measured += float(sums[1])
            count += float(sums[2])
        return TestResult(measured / count, loss / count)
