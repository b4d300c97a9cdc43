"""The server's optimisers (Reddi et al. 2021, Algorithms 1 and 2), and the finalizer that applies them.

TFF's own Adagrad, Adam and Yogi are other algorithms than the paper's: they correct the moments' bias, start from other
accumulators, and Adagrad has its epsilon under the root. SGD and momentum are TFF's.
"""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from device_runtime.errors import InputError
from tff_sim.algorithms.algorithm import ServerOptimizer

_LEARNING_RATE = tff.learning.optimizers.LEARNING_RATE_KEY


def build_server_optimizer(optimizer: ServerOptimizer) -> Any:
    """A `tff.learning.optimizers.Optimizer`, which TFF's own algorithms take as `server_optimizer_fn` too.

    Raises:
        InputError: it is something else than a `ServerOptimizer`, such as its name.
    """
    if not isinstance(optimizer, ServerOptimizer):
        raise InputError(f"expected a ServerOptimizer, such as ServerOptimizer('fedadam'), not {optimizer!r}")
    parameters = optimizer.parameters
    if optimizer.name in ("sgd", "momentum"):
        return tff.learning.optimizers.build_sgdm(parameters["learning_rate"], parameters.get("momentum"))
    return _Adaptive(optimizer.name, **parameters)


class _Adaptive(tff.learning.optimizers.Optimizer):
    """FedAdagrad, FedAdam and FedYogi: m and v of the pseudo-gradient g = −Δ, and w ← w − η·m/(√v + τ)."""

    def __init__(self, name: str, learning_rate: float, beta_1: float, tau: float, beta_2: float = 0.0) -> None:
        self._name = name
        self._hparams = collections.OrderedDict(
            {_LEARNING_RATE: learning_rate, "beta_1": beta_1, "beta_2": beta_2, "tau": tau}
        )

    def initialize(self, specs: Any) -> Any:
        second = float(np.square(self._hparams["tau"]))
        return collections.OrderedDict(
            **self._hparams,
            m=tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), specs),
            v=tf.nest.map_structure(lambda spec: tf.fill(spec.shape, tf.cast(second, spec.dtype)), specs),
        )

    def next(self, state: Any, weights: Any, gradients: Any) -> Any:
        rate, beta_1, beta_2, tau = (state[name] for name in self._hparams)

        def second(v: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
            if self._name == "fedadam":
                return beta_2 * v + (1 - beta_2) * g * g  # TensorFlow would multiply in this order anyway
            square = g * g
            if self._name == "fedadagrad":
                return v + square
            return v - (1 - beta_2) * square * tf.sign(v - square)

        m = tf.nest.map_structure(lambda m, g: beta_1 * m + (1 - beta_1) * g, state["m"], gradients)
        v = tf.nest.map_structure(second, state["v"], gradients)
        stepped = tf.nest.map_structure(lambda w, m, v: w - rate * m / (tf.sqrt(v) + tau), weights, m, v)
        return collections.OrderedDict(state, m=m, v=v), stepped

    def get_hparams(self, state: Any) -> Any:
        return collections.OrderedDict((name, state[name]) for name in self._hparams)

    def set_hparams(self, state: Any, hparams: Any) -> Any:
        return collections.OrderedDict(state, **hparams)


def build_finalizer(optimizer: ServerOptimizer, weights_type: Any) -> Any:
    """A `tff.learning.templates.FinalizerProcess` that steps from the clients' aggregate.

    It is TFF's own, but for what keeps it from stepping: not only an aggregate that is not finite (the mean of no
    updates is 0/0) but also a step whose weights or moments would not be. Weights and state then stay as they were, and
    the measurement ``update_non_finite`` is 1.

    Args:
        optimizer: of the server.
        weights_type: TFF's type of `tff.learning.models.ModelWeights`.
    """
    rule = build_server_optimizer(optimizer)
    trainable = weights_type.trainable

    @tff.tensorflow.computation
    def initialize_state() -> Any:
        return rule.initialize([tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in trainable])

    state_type = initialize_state.type_signature.result

    @tff.tensorflow.computation(state_type, trainable, trainable)
    @tf.function
    def step(state: Any, weights: Any, update: Any) -> Any:
        new = rule.next(state, weights, update)
        finite = all_finite(tf.nest.flatten([update, new]))
        state, weights = tf.nest.map_structure(lambda old, new: tf.where(finite, new, old), (state, weights), new)
        return state, weights, collections.OrderedDict(update_non_finite=tf.cast(not finite, tf.int32))

    @tff.federated_computation
    def initialize() -> Any:
        return tff.federated_eval(initialize_state, tff.SERVER)

    @tff.federated_computation(
        initialize.type_signature.result,
        tff.FederatedType(weights_type, tff.SERVER),
        tff.FederatedType(trainable, tff.SERVER),
    )
    def next_fn(state: Any, weights: Any, update: Any) -> Any:
        state, stepped, measurements = tff.federated_map(step, (state, weights.trainable, update))
        model = tff.learning.models.ModelWeights(stepped, weights.non_trainable)
        return tff.templates.MeasuredProcessOutput(state, tff.federated_zip(model), measurements)

    @tff.tensorflow.computation(state_type)
    def get_hparams(state: Any) -> Any:
        return rule.get_hparams(state)

    @tff.tensorflow.computation(state_type, get_hparams.type_signature.result)
    def set_hparams(state: Any, hparams: Any) -> Any:
        return rule.set_hparams(state, hparams)

    return tff.learning.templates.FinalizerProcess(
        initialize, next_fn, get_hparams_fn=get_hparams, set_hparams_fn=set_hparams
    )


def all_finite(tensors: Any) -> tf.Tensor:
    """Whether no NaN or infinity is in any of these float tensors; bool []."""
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors])
