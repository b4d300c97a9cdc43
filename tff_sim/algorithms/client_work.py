"""ClientUpdate of McMahan et al. 2017, Algorithm 1, as a TFF client work."""

from __future__ import annotations

import collections
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from device_runtime.work import ClientWork
from models import ModelSpec, trained_variables
from models.dropout import has_dropout
from models.training import client_step
from tff_sim.algorithms.client_data import client_data_type
from tff_sim.algorithms.client_files import client_files_type, read_client
from tff_sim.algorithms.client_model import client_model_builder


def build_client_work(spec: ModelSpec, weights_type: Any, work: ClientWork, in_files: bool = False) -> Any:
    """A `tff.learning.templates.ClientWorkProcess` for E epochs with batch size B.

    Its result is the pseudo-gradient, weights before minus weights after, with the number of examples n_k
    as weight, which is what TFF's aggregators and finalizers expect. Where the codec is another than `f32`, the
    client's seed stands beside it (`tff_sim.algorithms.aggregation.encoded_type`).
    Its measurements are of all clients that trained: ``loss``, the mean over all examples of all steps but of clients
    whose loss is not finite (NaN if that leaves none), ``examples`` and ``clients``.

    Args:
        spec: the model.
        weights_type: TFF's type of `tff.learning.models.ModelWeights` for it.
        work: batch size, proximal term and codec; epochs, order, seeds and learning rate come with the data.
        in_files: a client's data are a sequence of the paths of its files (`tff_sim.algorithms.client_files`).

    Raises:
        ValueError: a layer draws random numbers that a device can't repeat.
    """
    data_type = tff.SequenceType(client_files_type) if in_files else client_data_type(spec)
    build_model = client_model_builder(spec)

    @tff.tensorflow.computation(weights_type, data_type)
    def train(initial: Any, dataset: tf.data.Dataset) -> Any:
        return _train_function(spec, build_model(), work, in_files)(initial.trainable, dataset)

    @tff.federated_computation
    def initialize() -> Any:
        return tff.federated_value((), tff.SERVER)

    @tff.federated_computation(
        initialize.type_signature.result,
        tff.FederatedType(weights_type, tff.CLIENTS),
        tff.FederatedType(data_type, tff.CLIENTS),
    )
    def next_fn(state: Any, weights: Any, data: Any) -> Any:
        trained = tff.federated_map(train, (weights, data))
        measurements = tff.federated_map(_summary, tff.federated_sum(trained.measured))
        return tff.templates.MeasuredProcessOutput(state, trained.result, measurements)

    return tff.learning.templates.ClientWorkProcess(initialize, next_fn)


def _train_function(spec: ModelSpec, model: tf.keras.Model, work: ClientWork, in_files: bool) -> Any:
    has_dropout(model)  # refuses a random layer in one line, which AutoGraph would wrap into ten
    variables = trained_variables(model)
    slots = spec.optimizer.make_slots(model.trainable_variables)

    @tf.function
    def run(initial: Any, dataset: tf.data.Dataset) -> Any:
        for variable, value in zip(variables, initial, strict=True):
            variable.assign(value)
        spec.optimizer.reset(slots)
        data = dataset.get_single_element()
        if in_files:
            data = read_client(spec, data)
        x, y, order, seeds = data["x"], data["y"], data["order"], data["seeds"]
        examples = tf.shape(x)[0]
        batch_size = examples if work.batch_size is None else work.batch_size
        loss_sum, step = tf.constant(0.0), 0
        for epoch in tf.range(tf.shape(order)[0]):
            for start in tf.range(0, examples, batch_size):
                indices = order[epoch, start : start + batch_size]
                loss = client_step(
                    spec, model, slots, tf.gather(x, indices), tf.gather(y, indices),
                    data["learning_rate"], work.proximal, initial, seeds[step],
                )  # fmt: skip
                step += 1
                loss_sum += loss * tf.cast(tf.size(indices), tf.float32)
        weight = tf.cast(examples, tf.float32)
        finite = tf.math.is_finite(loss_sum)
        # TFF's finalizers take a pseudo-gradient: the delta of the protocol with its sign turned.
        delta = [(value - variable) * data["factor"] for variable, value in zip(variables, initial, strict=True)]
        update = delta if work.codec == "f32" else collections.OrderedDict(delta=delta, seed=data["seed"])
        return collections.OrderedDict(
            result=tff.learning.templates.ClientResult(update=update, update_weight=weight),
            # One structure, and so one sum: whatever is summed costs time for each client.
            measured=collections.OrderedDict(
                loss_sum=tf.where(finite, loss_sum, 0.0),
                steps_examples=tf.where(finite, tf.cast(tf.size(order), tf.float32), 0.0),
                examples=weight,
                clients=1,
            ),
        )

    return run


@tff.tensorflow.computation
def _summary(sums: Any) -> Any:
    return collections.OrderedDict(
        loss=sums["loss_sum"] / sums["steps_examples"], examples=sums["examples"], clients=sums["clients"]
    )
