"""FederatedAveraging (McMahan et al. 2017, Algorithm 1) and its relatives as TFF learning processes.

Composed of the four parts that TFF's templates name, so that each can be exchanged: the distributor sends
the weights, the client work trains, the aggregator takes the mean weighted by the number of examples, and
the finalizer adds it to the weights. `Algorithm` says what else aggregator and finalizer can do.
"""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import tensorflow_federated as tff

from device_runtime.errors import InputError
from device_runtime.tensors import Weights
from device_runtime.work import ClientWork
from models import ModelSpec
from tff_sim.algorithms.aggregation import build_aggregator, encoded_type
from tff_sim.algorithms.algorithm import FED_AVG, Algorithm
from tff_sim.algorithms.client_model import require_trainable
from tff_sim.algorithms.client_work import build_client_work
from tff_sim.algorithms.server_optimizer import build_finalizer


def build_fed_avg(
    spec: ModelSpec,
    work: ClientWork,
    initial_weights: Weights,
    algorithm: Algorithm = FED_AVG,
    in_files: bool = False,
) -> Any:
    """A `tff.learning.templates.LearningProcess`, to be used like those of `tff.learning.algorithms`.

    Its clients' data are made by `tff_sim.client_dataset`, one a client of the round's cohort:

        process = build_fed_avg(spec, work, initial_weights)
        state = process.initialize()
        for number in range(1, rounds + 1):
            data = [client_dataset(examples[c], work, client_seed(seed, number, c)) for c in cohort]
            output = process.next(state, data)
            state = output.state
        weights = process.get_model_weights(state)  # tff.learning.models.ModelWeights

    Args:
        spec: the model.
        work: batch size, proximal term and codec of the clients; epochs and learning rate come with their data.
        initial_weights: w_0, float32, in the order of `models.trained_variables`.
        algorithm: what the server makes of the clients' deltas.
        in_files: the clients' data are paths of files instead, as `tff_sim.engines.shared.SharedEngine` makes them.

    Raises:
        InputError: the weights are not the model's; the model has a regularizer, or a softmax before a loss of logits;
            `spec.build` gives the same model again; the codec is not known; or a name stands for the algorithm.
        ValueError: a layer draws random numbers that a device can't repeat.
    """
    require_trainable(spec, initial_weights)
    if not isinstance(algorithm, Algorithm):
        raise InputError(f"expected an Algorithm, such as Algorithm(ServerOptimizer('fedadam')), not {algorithm!r}")
    initial_weights = tuple(np.asarray(value) for value in initial_weights)  # of variables, too
    weights_type = _weights_type(initial_weights)
    return tff.learning.templates.compose_learning_process(
        _start(initial_weights),
        tff.learning.templates.build_broadcast_process(weights_type),
        build_client_work(spec, weights_type, work, in_files),
        build_aggregator(algorithm, work, weights_type.trainable),
        build_finalizer(algorithm.optimizer, weights_type),
    )


def build_server_update(work: ClientWork, initial_weights: Weights, algorithm: Algorithm = FED_AVG) -> Any:
    """The server's half of `build_fed_avg`, for deltas that come from elsewhere: a `tff.templates.IterativeProcess`.

    next(state, results) takes the state of `build_fed_avg`, which is one and the same, and one
    `tff.learning.templates.ClientResult` a client: `update`, weights before minus weights after, beside the client's
    seed where the codec is another than `f32` (`aggregation.encoded_type`), and `update_weight`, the number of
    examples as float32. It gives a `tff.learning.templates.LearningProcessOutput` whose metrics are those of
    ``aggregator`` and ``finalizer``; the weights are ``state.global_model_weights.trainable``.

    Args:
        work: names the codec of the updates.
        initial_weights: w_0, float32.
        algorithm: what the server makes of the deltas.
    """
    weights_type = _weights_type(initial_weights)
    aggregator = build_aggregator(algorithm, work, weights_type.trainable)
    finalizer = build_finalizer(algorithm.optimizer, weights_type)
    start = _start(initial_weights)
    results_type = tff.FederatedType(
        tff.to_type(
            tff.learning.templates.ClientResult(encoded_type(work, weights_type.trainable), tff.TensorType(np.float32))
        ),
        tff.CLIENTS,
    )

    @tff.federated_computation
    def initialize() -> Any:
        nothing = tff.federated_value((), tff.SERVER)
        return tff.federated_zip(
            tff.learning.templates.LearningAlgorithmState(
                tff.federated_eval(start, tff.SERVER), nothing, nothing, aggregator.initialize(), finalizer.initialize()
            )
        )

    @tff.federated_computation(initialize.type_signature.result, results_type)
    def next_fn(state: Any, results: Any) -> Any:
        aggregated = aggregator.next(state.aggregator, results.update, results.update_weight)
        finalized = finalizer.next(state.finalizer, state.global_model_weights, aggregated.result)
        after = tff.learning.templates.LearningAlgorithmState(
            finalized.result, state.distributor, state.client_work, aggregated.state, finalized.state
        )
        metrics = collections.OrderedDict(aggregator=aggregated.measurements, finalizer=finalized.measurements)
        return tff.learning.templates.LearningProcessOutput(tff.federated_zip(after), tff.federated_zip(metrics))

    return tff.templates.IterativeProcess(initialize, next_fn)


def _weights_type(weights: Weights) -> Any:
    tensors = [tff.TensorType(value.dtype.type, value.shape) for value in weights]
    return tff.to_type(tff.learning.models.ModelWeights(trainable=tensors, non_trainable=[]))


def _start(weights: Weights) -> Any:
    @tff.tensorflow.computation
    def initial_model_weights() -> Any:
        return tff.learning.models.ModelWeights(trainable=list(weights), non_trainable=[])

    return initial_model_weights
