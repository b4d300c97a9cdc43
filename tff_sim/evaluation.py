"""Accuracy and loss of the global model on the test set, in plain TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from device_runtime.examples import Examples
from device_runtime.tensors import Weights
from models import ModelSpec
from models.training import evaluation_sums

_BATCH = 500


@dataclass(frozen=True)
class TestResult:
    """Share of right answers and mean loss on the test set."""

    accuracy: float
    loss: float


class Evaluator:
    """Evaluates weights on a fixed test set; the model and its graph are built once."""

    def __init__(self, spec: ModelSpec, test: Examples) -> None:
        self._model = model = spec.build()
        self._test = test
        self._sums = tf.function(
            lambda x, y: evaluation_sums(spec, model, x, y), input_signature=[spec.input, spec.label]
        )

    def __call__(self, weights: Weights) -> TestResult:
        """Test these weights, float32, in the model's order."""
        for variable, value in zip(self._model.trainable_variables, weights, strict=True):
            variable.assign(value)
        loss = right = 0.0
        for start in range(0, len(self._test), _BATCH):
            sums = self._sums(self._test.x[start : start + _BATCH], self._test.y[start : start + _BATCH])
            loss += float(sums[0])
            right += float(sums[1])
        return TestResult(right / len(self._test), loss / len(self._test))
