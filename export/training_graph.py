"""The training artifact as TensorFlow functions: one for each signature of docs/bundle.md.

Every signature has an input, because Android's `runSignature` rejects an empty map; batches are dynamic.
Weights are float32 variables that `train` changes in place.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from device_runtime.bundle import Signature
from device_runtime.tensors import TensorSpec
from export.errors import ExportError
from export.gradients import OVERRIDES, check_supported
from export.losses import LOSSES
from models import ModelSpec, tensor_names


class TrainingGraph(tf.Module):
    """A Keras model with the functions that a device calls.

    Raises:
        ExportError: the model's loss or one of its layers is not supported.
    """

    def __init__(self, spec: ModelSpec, model: tf.keras.Model) -> None:
        super().__init__()
        if spec.loss not in LOSSES:
            raise ExportError(f"model {spec.name!r}: no builtin form of the loss {spec.loss!r}")
        if model.non_trainable_weights:
            raise ExportError(
                f"layer {model.non_trainable_weights[0].name.split('/')[0]!r}: weights that are not trained"
                " can't be exported yet; make the layer trainable or leave it out"
            )
        self.spec = spec
        self.model = model
        self.weights = list(model.trainable_weights)
        # What the round started from: the centre of the proximal term.
        self.anchors = [tf.Variable(tf.zeros_like(weight), trainable=False) for weight in self.weights]

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Name, shape and dtype of each weight, in the order that all weight files and updates have."""
        return tuple(
            TensorSpec(name, tuple(weight.shape), weight.dtype.name)
            for name, weight in zip(tensor_names(self.model), self.weights, strict=True)
        )

    def functions(self) -> dict[str, Any]:
        """Signature name → concrete function."""
        x = tf.TensorSpec(self.spec.input.shape, self.spec.input.dtype, name="x")
        y = tf.TensorSpec(self.spec.label.shape, self.spec.label.dtype, name="y")
        number = {name: tf.TensorSpec((), tf.float32, name=name) for name in ("learning_rate", "proximal", "unused")}
        weights = [
            tf.TensorSpec(weight.shape, weight.dtype, name=f"w{index}") for index, weight in enumerate(self.weights)
        ]
        signatures = {
            "train": (self._train, (x, y, number["learning_rate"], number["proximal"])),
            "evaluate": (self._evaluate, (x, y)),
            "infer": (self._infer, (x,)),
            "set_weights": (self._set_weights, weights),
            "get_weights": (self._get_weights, (number["unused"],)),
        }
        # Nothing in them is for AutoGraph to rewrite, and it would wrap the message of an error into ten lines.
        return {
            name: tf.function(body, autograph=False).get_concrete_function(*inputs)
            for name, (body, inputs) in signatures.items()
        }

    def _train(self, x: tf.Tensor, y: tf.Tensor, learning_rate: tf.Tensor, proximal: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.compat.v1.get_default_graph().gradient_override_map(OVERRIDES):
            logits = self.model(x, training=True)
        check_supported(logits)
        losses, dlogits = LOSSES[self.spec.loss](y, logits)
        examples = tf.cast(tf.shape(x)[0], tf.float32)
        gradients = tf.gradients(logits, self.weights, grad_ys=dlogits / examples)
        for weight, anchor, gradient in zip(self.weights, self.anchors, gradients, strict=True):
            pull = proximal * (weight - anchor)
            weight.assign(weight - learning_rate * (gradient + pull))
        return {"loss": tf.reduce_sum(losses) / examples}

    def _evaluate(self, x: tf.Tensor, y: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = self.model(x, training=False)
        losses, _ = LOSSES[self.spec.loss](y, logits)
        right = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), y)
        return {
            "loss_sum": tf.reduce_sum(losses),
            "correct": tf.reduce_sum(tf.cast(right, tf.float32)),
            "count": tf.cast(tf.shape(x)[0], tf.float32),
        }

    def _infer(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": self.model(x, training=False)}

    def _set_weights(self, *values: tf.Tensor) -> dict[str, tf.Tensor]:
        for weight, anchor, value in zip(self.weights, self.anchors, values, strict=True):
            weight.assign(value)
            anchor.assign(value)
        return {"count": tf.add_n([tf.reduce_sum(tf.ones_like(value)) for value in values])}

    def _get_weights(self, unused: tf.Tensor) -> dict[str, tf.Tensor]:
        # TFLite drops an input that nothing reads, and with it the signature; 0 × unused keeps it.
        nothing = 0.0 * unused
        return {f"w{index}": weight + nothing for index, weight in enumerate(self.weights)}


def describe(functions: dict[str, Any]) -> dict[str, Signature]:
    """The manifest's account of the signatures: inputs and outputs in the order of their names' making."""
    return {
        name: Signature(
            inputs=tuple(_spec(tensor.name.split(":")[0], tensor) for tensor in function.inputs[: _explicit(function)]),
            outputs=tuple(_spec(key, tensor) for key, tensor in function.structured_outputs.items()),
        )
        for name, function in functions.items()
    }


def _explicit(function: Any) -> int:
    """Number of inputs that a caller gives; the rest are captured variables."""
    return len(function.inputs) - len(function.captured_inputs)


def _spec(name: str, tensor: tf.Tensor) -> TensorSpec:
    return TensorSpec(name, tuple(tensor.shape), tensor.dtype.name)
