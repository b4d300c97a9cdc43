"""The training artifact as TensorFlow functions: one for each signature of docs/bundle.md.

Every signature has an input, because Android's `runSignature` rejects an empty map; batches are dynamic.
Weights are float32 variables that `train` changes in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from device_runtime.bundle import Signature, StoredVariable
from device_runtime.tensors import TensorSpec
from export.addressing import SIGNATURES, VARIABLES
from export.errors import ExportError
from export.layout import factors_of, store
from export.lowering.call import Gradient
from export.recurrent import trace_model
from export.replay import Replay, scope_of, trace
from models import ModelSpec, tensor_names, trained_variables
from models.dropout import has_dropout, seeded_dropout
from models.losses import LOSSES
from models.optimizers import PLAIN_SGD
from models.state import all_layers
from models.training import prediction_sums


class TrainingGraph(tf.Module):
    """A Keras model with the functions that a device calls.

    Args:
        shared: whether what the model does many times stands in the functions once, and is called; or each time.

    Attributes:
        spec, model: of the model.
        weights: Keras's variables that travel.
        logits: the traced graph of the forward pass in inference.

    Raises:
        ExportError: one of the model's layers is not supported.
    """

    def __init__(self, spec: ModelSpec, model: tf.keras.Model, shared: bool = True) -> None:
        super().__init__()
        self.spec = spec
        self.model = model
        self._shared = shared
        self.weights = trained_variables(model)
        try:
            self.draws = has_dropout(model)
        except ValueError as error:
            raise ExportError(str(error)) from None
        if not model.trainable_variables:
            raise ExportError(f"model {spec.name!r}: no layer is trainable; there is nothing to train on a device")
        self._losses = trace_model(model, self._losses_of, [*self._examples, *self._seed])
        self.logits = trace_model(model, lambda x: model(x, training=False), self._examples[:1])
        self._stored = store(self.weights, *factors_of(self._losses, model.trainable_variables))
        self._with_gradient = list(model.trainable_variables)
        trained = self._stored[: len(self._with_gradient)]
        self._variables = [variable for stored in trained for variable in stored.variables]
        self._slots = spec.optimizer.make_slots(self._variables)
        # What the round started from, the centre of the proximal term; and the term's pull during a step.
        self._anchors = [tf.Variable(tf.zeros_like(variable), trainable=False) for variable in self._variables]
        self._pulls = [tf.Variable(tf.zeros_like(variable), trainable=False) for variable in self._variables]

    @property
    def _examples(self) -> list[tf.TensorSpec]:
        return [
            tf.TensorSpec(self.spec.input.shape, self.spec.input.dtype, name="x"),
            tf.TensorSpec(self.spec.label.shape, self.spec.label.dtype, name="y"),
        ]

    @property
    def _seed(self) -> list[tf.TensorSpec]:
        return [tf.TensorSpec((), tf.int32, name="seed")] if self.draws else []

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Name, shape and dtype of each weight, in the order that all weight files and updates have."""
        return tuple(
            TensorSpec(name, tuple(weight.shape), weight.dtype.name)
            for name, weight in zip(tensor_names(self.model), self.weights, strict=True)
        )

    @property
    def stored_variables(self) -> tuple[StoredVariable, ...]:
        """What each of the artifact's variables holds, in the order of their numbers."""
        return tuple(one for index, stored in enumerate(self._stored) for one in stored.describe(index))

    @property
    def optimizer_state(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the variables of the optimiser's state, whose numbers follow on those of the weights."""
        return tuple(tuple(map(int, slot.shape)) for slot in self._slots)

    def functions(self) -> dict[str, Any]:
        """Signature name → concrete function.

        Raises:
            ExportError: an operator of the model has no form in TFLite builtins.
        """
        x, y = self._examples
        number = {name: tf.TensorSpec((), tf.float32, name=name) for name in ("learning_rate", "proximal", "unused")}
        signatures: dict[str, tuple[Any, Sequence[tf.TensorSpec]]] = {
            "train": (self._train, (x, y, number["learning_rate"], number["proximal"], *self._seed)),
            "evaluate": (self._evaluate, (x, y)),
            "infer": (self._infer, (x,)),
            "reset": (self._reset, (number["unused"],)),
            "anchor": (self._anchor, (number["unused"],)),
            VARIABLES: (self._read_all, (number["unused"],)),
        }
        # Nothing in them is for AutoGraph to rewrite, and it would wrap the message of an error into ten lines.
        return {
            name: tf.function(body, autograph=False).get_concrete_function(*inputs)
            for name, (body, inputs) in signatures.items()
        }

    def _losses_of(self, x: tf.Tensor, y: tf.Tensor, *seed: tf.Tensor) -> tf.Tensor:
        """The loss of each prediction, in training."""
        with seeded_dropout(self.model, *seed or (0,)):
            return LOSSES[self.spec.loss](y, self.model(x, training=True))

    def _replay(self, graph: Any, *inputs: tf.Tensor) -> Replay:
        names = {layer.name for layer in all_layers(self.model)}
        given = {s.weight.ref(): s.read() for s in self._stored if s.variables[0] is not s.weight}
        return Replay(graph, inputs, self.weights, names, given, self._shared)

    def _by_variable(self, gradients: Sequence[Gradient]) -> list[tf.Tensor]:
        """The weights' gradients as those of `_variables`."""
        found: list[tf.Tensor] = []
        for stored, gradient in zip(self._stored, gradients, strict=False):  # the statistics have none
            with tf.name_scope(scope_of(stored.weight.name)):
                found += stored.gradients(gradient)
        return found

    def _train(
        self, x: tf.Tensor, y: tf.Tensor, learning_rate: tf.Tensor, proximal: tf.Tensor, *seed: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        replay = self._replay(self._losses, x, y, *seed)
        losses = replay.outputs[0]
        predictions = tf.cast(tf.size(losses), tf.float32)
        if self.spec.optimizer == PLAIN_SGD:
            self._sgd_step(replay, learning_rate, proximal, predictions)
        else:
            shares = tf.fill(tf.shape(losses), 1.0 / predictions)
            gradients = self._by_variable(replay.gradients(self._with_gradient, shares))
            pulls = self._conditional_pulls(proximal)
            pulled = [g + p for g, p in zip(self.spec.optimizer.clip(gradients), pulls, strict=True)]
            self.spec.optimizer.apply(self._variables, pulled, self._slots, learning_rate)
        for reference, value in replay.updates.items():
            reference.deref().assign(value)
        return {"loss": tf.reduce_sum(losses) / predictions}

    def _sgd_step(self, replay: Replay, learning_rate: tf.Tensor, proximal: tf.Tensor, predictions: tf.Tensor) -> None:
        """Plain SGD; the learning rate is multiplied into the losses' gradients, which are small.

        The proximal term's pull is kept in variables, so that a step without one does nothing for it.
        """

        def keep_pulls() -> tf.Tensor:
            for variable, anchor, pull in zip(self._variables, self._anchors, self._pulls, strict=True):
                pull.assign((learning_rate * proximal) * (variable - anchor))
            return tf.constant(0.0)

        def pull_back() -> tf.Tensor:
            for variable, pull in zip(self._variables, self._pulls, strict=True):
                variable.assign(variable - pull)
            return tf.constant(0.0)

        rates = tf.fill(tf.shape(replay.outputs[0]), learning_rate / predictions)
        gradients = replay.gradients(self._with_gradient, rates)
        tf.cond(proximal > 0.0, keep_pulls, lambda: tf.constant(0.0))
        steps = iter(self._by_variable(gradients))
        for stored, gradient in zip(self._stored, gradients, strict=False):
            before = stored.values(replay.reads.get(stored.weight.ref()))
            for variable, value, step in zip(stored.variables, before, steps, strict=False):
                if gradient is not None:
                    variable.assign(value - step)
        tf.cond(proximal > 0.0, pull_back, lambda: tf.constant(0.0))

    def _conditional_pulls(self, proximal: tf.Tensor) -> list[tf.Tensor]:
        """proximal · (weight − anchor), or zeros without a look at the anchors."""
        pairs = list(zip(self._variables, self._anchors, strict=True))
        pulls: list[tf.Tensor] = tf.cond(
            proximal > 0.0,
            lambda: [proximal * (weight - anchor) for weight, anchor in pairs],
            lambda: [tf.zeros(weight.shape) for weight, _ in pairs],
        )
        return pulls

    def _evaluate(self, x: tf.Tensor, y: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = self._replay(self.logits, x).outputs[0]
        specs = [self._examples[1], tf.TensorSpec(logits.shape, logits.dtype)]
        sums = Replay(trace(lambda y, logits: prediction_sums(self.spec, y, logits), specs), (y, logits), ())
        return dict(zip(("loss_sum", "correct", "count"), sums.outputs, strict=True))

    def _infer(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": self._replay(self.logits, x).outputs[0]}

    def _read_all(self, unused: tf.Tensor) -> dict[str, tf.Tensor]:
        """The variables by their numbers, from which `export.addressing` makes the signatures that take a number."""
        variables = [variable for stored in self._stored for variable in stored.variables] + self._slots
        # TFLite drops an input that nothing reads, and with it the signature; the count reads it.
        values = {str(number): variable.read_value() for number, variable in enumerate(variables)}
        return values | {"count": unused + self._count}

    def _reset(self, unused: tf.Tensor) -> dict[str, tf.Tensor]:
        self.spec.optimizer.reset(self._slots)
        return {"count": unused + self._count}

    def _anchor(self, unused: tf.Tensor) -> dict[str, tf.Tensor]:
        for variable, anchor in zip(self._variables, self._anchors, strict=True):
            anchor.assign(variable)
        return {"count": unused + self._count}

    @property
    def _count(self) -> float:
        return float(sum(weight.shape.num_elements() for weight in self.weights))


def describe(functions: dict[str, Any]) -> dict[str, Signature]:
    """The manifest's account of the signatures: inputs and outputs in the order of their names' making."""
    traced = {
        name: Signature(
            inputs=tuple(_spec(tensor.name.split(":")[0], tensor) for tensor in function.inputs[: _explicit(function)]),
            outputs=tuple(_spec(key, tensor) for key, tensor in function.structured_outputs.items()),
        )
        for name, function in functions.items()
        if name != VARIABLES
    }
    return traced | SIGNATURES


def _explicit(function: Any) -> int:
    """Number of inputs that a caller gives; the rest are captured variables."""
    return len(function.inputs) - len(function.captured_inputs)


def _spec(name: str, tensor: tf.Tensor) -> TensorSpec:
    return TensorSpec(name, tuple(tensor.shape), tensor.dtype.name)
