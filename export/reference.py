"""Keras' side of every comparison: training steps in TensorFlow from given weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from device_runtime.tensors import FloatArray, Weights
from models import ModelSpec
from models.training import sgd_step


class KerasTrainer:
    """The same three methods as `device_runtime.trainer.Trainer`, computed by TensorFlow."""

    def __init__(self, spec: ModelSpec, weights: Weights) -> None:
        self._spec = spec
        self._model = spec.build()
        self._anchors = [tf.Variable(value, trainable=False) for value in weights]
        self._steps: dict[float, Any] = {}
        self.set_weights(weights)

    def set_weights(self, weights: Weights) -> None:
        """Go on from these weights; the centre of the proximal term stays where it was."""
        for variable, value in zip(self._model.trainable_variables, weights, strict=True):
            variable.assign(value)

    def get_weights(self) -> Weights:
        """The current weights, float32, in the model's order."""
        return tuple(variable.numpy() for variable in self._model.trainable_variables)

    def step(self, x: npt.NDArray[Any], y: npt.NDArray[Any], learning_rate: float, proximal: float = 0.0) -> float:
        """One step of SGD on a batch; the batch's mean loss before the step."""
        if proximal not in self._steps:

            def body(x: tf.Tensor, y: tf.Tensor, learning_rate: tf.Tensor) -> tf.Tensor:
                return sgd_step(self._spec, self._model, x, y, learning_rate, proximal, self._anchors)

            number = tf.TensorSpec((), tf.float32)
            self._steps[proximal] = tf.function(body, input_signature=[self._spec.input, self._spec.label, number])
        return float(self._steps[proximal](x, y, np.float32(learning_rate)))

    def infer(self, x: npt.NDArray[Any]) -> FloatArray:
        """Logits, float32 [B, …]."""
        logits: FloatArray = self._model(x, training=False).numpy()
        return logits


def synthetic_batch(
    spec: ModelSpec, classes: int, size: int, rng: np.random.Generator
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """A batch that can be learned without any data set: noise around zero, and a bump whose place is the label.

    Returns:
        x [size, …] and y [size, …] as the spec's input and label.
    """
    y = rng.integers(0, classes, (size, *spec.label.shape[1:])).astype(spec.label.dtype.as_numpy_dtype)
    features = int(np.prod(spec.input.shape[1:]))
    place = (y.reshape(size, -1)[:, :1] + 0.5) / classes
    bump = np.exp(-50 * (np.linspace(0, 1, features) - place) ** 2)
    x = bump + 0.3 * rng.standard_normal((size, features))
    return x.reshape(size, *spec.input.shape[1:]).astype(spec.input.dtype.as_numpy_dtype), y
