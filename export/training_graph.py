"""The training artifact as TensorFlow functions: one for each signature of docs/bundle.md.

Every signature has an input, because Android's `runSignature` rejects an empty map; batches are dynamic.
Weights are float32 variables that `train` changes in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from device_runtime.bundle import Signature
from device_runtime.tensors import TensorSpec
from export.errors import ExportError
from export.recurrent import replay_model
from export.replay import Replay
from models import ModelSpec, tensor_names, trained_variables
from models.dropout import has_dropout, seeded_dropout
from models.losses import LOSSES
from models.optimizers import ClientOptimizer
from models.training import evaluation_sums


class TrainingGraph(tf.Module):
    """A Keras model with the functions that a device calls.

    Raises:
        ExportError: the model's loss or one of its layers is not supported.
    """

    def __init__(self, spec: ModelSpec, model: tf.keras.Model) -> None:
        super().__init__()
        if spec.loss not in LOSSES:
            raise ExportError(f"model {spec.name!r}: unknown loss {spec.loss!r}; known are {', '.join(sorted(LOSSES))}")
        self.spec = spec
        self.model = model
        self.weights = trained_variables(model)
        try:
            self.draws = has_dropout(model)
        except ValueError as error:
            raise ExportError(str(error)) from None
        if not model.trainable_variables:
            raise ExportError(f"model {spec.name!r}: no layer is trainable; there is nothing to train on a device")
        self._gradient_weights = list(model.trainable_variables)
        self._slots = spec.optimizer.make_slots(self._gradient_weights)
        # What the round started from, the centre of the proximal term; and the term's pull during a step.
        self._anchors = [tf.Variable(tf.zeros_like(weight), trainable=False) for weight in self._gradient_weights]
        self._pulls = [tf.Variable(tf.zeros_like(weight), trainable=False) for weight in self._gradient_weights]

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Name, shape and dtype of each weight, in the order that all weight files and updates have."""
        return tuple(
            TensorSpec(name, tuple(weight.shape), weight.dtype.name)
            for name, weight in zip(tensor_names(self.model), self.weights, strict=True)
        )

    def functions(self) -> dict[str, Any]:
        """Signature name → concrete function.

        Raises:
            ExportError: an operator of the model has no form in TFLite builtins.
        """
        x = tf.TensorSpec(self.spec.input.shape, self.spec.input.dtype, name="x")
        y = tf.TensorSpec(self.spec.label.shape, self.spec.label.dtype, name="y")
        number = {name: tf.TensorSpec((), tf.float32, name=name) for name in ("learning_rate", "proximal", "unused")}
        seed = [tf.TensorSpec((), tf.int32, name="seed")] if self.draws else []
        weights = [
            tf.TensorSpec(weight.shape, weight.dtype, name=f"w{index}") for index, weight in enumerate(self.weights)
        ]
        signatures: dict[str, tuple[Any, Sequence[tf.TensorSpec]]] = {
            "train": (self._train, (x, y, number["learning_rate"], number["proximal"], *seed)),
            "evaluate": (self._evaluate, (x, y)),
            "infer": (self._infer, (x,)),
            "set_weights": (self._set_weights, weights),
            "get_weights": (self._get_weights, (number["unused"],)),
            "anchor": (self._anchor, (number["unused"],)),
        }
        # Nothing in them is for AutoGraph to rewrite, and it would wrap the message of an error into ten lines.
        return {
            name: tf.function(body, autograph=False).get_concrete_function(*inputs)
            for name, (body, inputs) in signatures.items()
        }

    def _replay(self, function: Any, *inputs: tf.Tensor) -> Replay:
        return replay_model(self.model, function, inputs, self.weights)

    def _train(
        self, x: tf.Tensor, y: tf.Tensor, learning_rate: tf.Tensor, proximal: tf.Tensor, *seed: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        def losses_of(x: tf.Tensor, y: tf.Tensor, *seed: tf.Tensor) -> tf.Tensor:
            with seeded_dropout(self.model, *seed or (0,)):
                return LOSSES[self.spec.loss](y, self.model(x, training=True))

        replay = self._replay(losses_of, x, y, *seed)
        losses = replay.outputs[0]
        predictions = tf.cast(tf.size(losses), tf.float32)
        if self.spec.optimizer == ClientOptimizer():
            self._sgd_step(replay, learning_rate, proximal, predictions)
        else:
            gradients = replay.gradients(self._gradient_weights, tf.fill(tf.shape(losses), 1.0 / predictions))
            pulls = self._conditional_pulls(proximal)
            pulled = [g + p for g, p in zip(self.spec.optimizer.clip(gradients), pulls, strict=True)]
            self.spec.optimizer.apply(self._gradient_weights, pulled, self._slots, learning_rate)
        for reference, value in replay.updates.items():
            reference.deref().assign(value)
        return {"loss": tf.reduce_sum(losses) / predictions}

    def _sgd_step(self, replay: Replay, learning_rate: tf.Tensor, proximal: tf.Tensor, predictions: tf.Tensor) -> None:
        """Plain SGD; the learning rate is multiplied into the losses' gradients, which are small.

        The proximal term's pull is kept in variables, so that a step without one does nothing for it.
        """

        def keep_pulls() -> tf.Tensor:
            for weight, anchor, pull in zip(self._gradient_weights, self._anchors, self._pulls, strict=True):
                pull.assign((learning_rate * proximal) * (weight - anchor))
            return tf.constant(0.0)

        def pull_back() -> tf.Tensor:
            for weight, pull in zip(self._gradient_weights, self._pulls, strict=True):
                weight.assign(weight - pull)
            return tf.constant(0.0)

        shape = tf.shape(replay.outputs[0])
        steps = replay.gradients(self._gradient_weights, tf.fill(shape, learning_rate / predictions))
        tf.cond(proximal > 0.0, keep_pulls, lambda: tf.constant(0.0))
        for weight, step in zip(self._gradient_weights, steps, strict=True):
            before = replay.reads.get(weight.ref())
            weight.assign((weight if before is None else before) - step)
        tf.cond(proximal > 0.0, pull_back, lambda: tf.constant(0.0))

    def _conditional_pulls(self, proximal: tf.Tensor) -> list[tf.Tensor]:
        """proximal · (weight − anchor), or zeros without a look at the anchors."""
        pairs = list(zip(self._gradient_weights, self._anchors, strict=True))
        pulls: list[tf.Tensor] = tf.cond(
            proximal > 0.0,
            lambda: [proximal * (weight - anchor) for weight, anchor in pairs],
            lambda: [tf.zeros(weight.shape) for weight, _ in pairs],
        )
        return pulls

    def _evaluate(self, x: tf.Tensor, y: tf.Tensor) -> dict[str, tf.Tensor]:
        replay = self._replay(lambda x, y: evaluation_sums(self.spec, self.model, x, y), x, y)
        return dict(zip(("loss_sum", "correct", "count"), replay.outputs, strict=True))

    def _infer(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": self._replay(lambda x: self.model(x, training=False), x).outputs[0]}

    def _set_weights(self, *values: tf.Tensor) -> dict[str, tf.Tensor]:
        for weight, value in zip(self.weights, values, strict=True):
            weight.assign(value)
        self.spec.optimizer.reset(self._slots)
        return {"count": tf.add_n([tf.reduce_sum(tf.ones_like(value)) for value in values])}

    def _get_weights(self, unused: tf.Tensor) -> dict[str, tf.Tensor]:
        # TFLite drops an input that nothing reads, and with it the signature; the count reads it.
        count = unused + float(sum(weight.shape.num_elements() for weight in self.weights))
        return {f"w{index}": weight.read_value() for index, weight in enumerate(self.weights)} | {"count": count}

    def _anchor(self, unused: tf.Tensor) -> dict[str, tf.Tensor]:
        for weight, anchor in zip(self._gradient_weights, self._anchors, strict=True):
            anchor.assign(weight)
        return {"count": unused + float(len(self._anchors))}


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
