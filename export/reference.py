"""Keras' side of every comparison: training steps in TensorFlow from given weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from device_runtime.tensors import FloatArray, Weights
from models import ModelSpec, trained_variables
from models.state import all_layers
from models.training import client_step


class KerasTrainer:
    """`device_runtime.trainer.Trainer` computed by TensorFlow; its optimiser's state can be read and set as well."""

    def __init__(self, spec: ModelSpec, weights: Weights) -> None:
        self._spec = spec
        self._model = spec.build()
        self._slots = spec.optimizer.make_slots(self._model.trainable_variables)
        self._anchors = [tf.Variable(value, trainable=False) for value in weights]
        self._steps: dict[float, Any] = {}
        self._infer: Any = None
        self.set_weights(weights)

    def reset_optimizer(self) -> None:
        """The optimiser's state as at the start of a round."""
        self._spec.optimizer.reset(self._slots)

    def get_slots(self) -> Weights:
        """The optimiser's state; empty for plain SGD."""
        return tuple(slot.numpy() for slot in self._slots)

    def set_slots(self, slots: Weights) -> None:
        """Back to a state from `get_slots`."""
        for variable, value in zip(self._slots, slots, strict=True):
            variable.assign(value)

    def set_weights(self, weights: Weights) -> None:
        """Go on from these weights; the proximal term's centre and the optimiser's state stay as they were."""
        for variable, value in zip(trained_variables(self._model), weights, strict=True):
            variable.assign(value)

    def get_weights(self) -> Weights:
        """The current weights, float32, in the model's order."""
        return tuple(variable.numpy() for variable in trained_variables(self._model))

    def step(
        self,
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        learning_rate: float,
        proximal: float = 0.0,
        *,
        seed: int = 0,
    ) -> float:
        """One training step on a batch; the batch's mean loss before the step. `seed` is of the dropout masks."""
        if proximal not in self._steps:

            def body(x: tf.Tensor, y: tf.Tensor, learning_rate: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
                return client_step(
                    self._spec, self._model, self._slots, x, y, learning_rate, proximal, self._anchors, seed
                )

            numbers = [tf.TensorSpec((), tf.float32), tf.TensorSpec((), tf.int32)]
            # Nothing in it is for AutoGraph to rewrite, and it would wrap the message of an error into ten lines.
            self._steps[proximal] = tf.function(
                body, input_signature=[self._spec.input, self._spec.label, *numbers], autograph=False
            )
        return float(self._steps[proximal](x, y, np.float32(learning_rate), np.int32(seed)))

    @property
    def model(self) -> Any:
        """The Keras model, with the current weights."""
        return self._model

    def infer(self, x: npt.NDArray[Any]) -> FloatArray:
        """Logits, float32 [B, …]."""
        if self._infer is None:  # recurrent layers take long outside of a graph
            self._infer = tf.function(lambda x: self._model(x, training=False), input_signature=[self._spec.input])
        logits: FloatArray = self._infer(x).numpy()
        return logits


def symbols_of(model: tf.keras.Model) -> int | None:
    """How many symbols all embeddings of the model know; None for a model without any."""
    sizes = [layer.input_dim for layer in all_layers(model) if isinstance(layer, tf.keras.layers.Embedding)]
    return min(sizes, default=None)


def synthetic_batch(
    spec: ModelSpec, classes: int, size: int, rng: np.random.Generator, symbols: int | None = None
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """A batch that can be learned without any data set.

    Labels that are classes come with noise around zero and a bump whose place is the label. Features that are whole
    numbers are below `symbols`, or else `classes`; where each step of a sequence has a label, it is the next symbol
    in the alphabet. Labels that are no classes are one-hot for `categorical_crossentropy`, 0 or 1 for
    `binary_crossentropy`, and else numbers from 0 to 1.

    Returns:
        x [size, …] and y [size, …] as the spec's input and label.
    """
    x_type, y_type = spec.input.dtype.as_numpy_dtype, spec.label.dtype.as_numpy_dtype
    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    x_shape, y_shape = (size, *spec.input.shape[1:]), (size, *spec.label.shape[1:])
    if spec.loss == "sparse_categorical_crossentropy":
        y = rng.integers(0, classes, y_shape)
        place = (y.reshape(size, -1)[:, :1] + 0.5) / classes
    elif spec.loss == "categorical_crossentropy":
        y = np.eye(y_shape[-1])[rng.integers(0, y_shape[-1], y_shape[:-1])]
        place = (y.reshape(size, -1, y_shape[-1])[:, 0].argmax(axis=-1, keepdims=True) + 0.5) / y_shape[-1]
    else:
        y = rng.integers(0, 2, y_shape) if spec.loss == "binary_crossentropy" else rng.random(y_shape)
        place = 0.25 + 0.5 * y.reshape(size, -1)[:, :1]
    if spec.input.dtype.is_integer:
        x = rng.integers(0, symbols or classes, x_shape)
        if x_shape == y_shape:
            y = (x + 1) % classes
    else:
        features = int(np.prod(x_shape[1:]))
        bump = np.exp(-50 * (np.linspace(0, 1, features) - place) ** 2)
        x = (bump + 0.3 * rng.standard_normal((size, features))).reshape(x_shape)
    return x.astype(x_type), y.astype(y_type)
