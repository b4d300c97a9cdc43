"""FederatedAveraging (McMahan et al. 2017, Algorithm 1) as a TFF learning process.

Composed of the four parts that TFF's templates name, so that each can be exchanged: the distributor sends
the weights, the client work trains, the aggregator takes the mean weighted by the number of examples, and
the finalizer adds it to the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow_federated as tff

from device_runtime.tensors import Weights
from device_runtime.work import ClientWork
from models import ModelSpec
from tff_sim.client_work import build_client_work


def build_fed_avg(spec: ModelSpec, work: ClientWork, initial_weights: Weights) -> Any:
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
        work: batch size and proximal term of the clients; epochs and learning rate come with their data.
        initial_weights: w_0, float32, in the order of `models.trained_variables`.
    """
    start = tff.learning.models.ModelWeights(trainable=list(initial_weights), non_trainable=[])
    weights_type = tff.to_type(
        tff.learning.models.ModelWeights(
            trainable=[tff.TensorType(value.dtype.type, value.shape) for value in initial_weights], non_trainable=[]
        )
    )

    @tff.tensorflow.computation
    def initial_model_weights() -> Any:
        return start

    update_type = weights_type.trainable
    weight_type = tff.TensorType(np.float32)
    return tff.learning.templates.compose_learning_process(
        initial_model_weights,
        tff.learning.templates.build_broadcast_process(weights_type),
        build_client_work(spec, weights_type, work),
        tff.aggregators.MeanFactory().create(update_type, weight_type),
        tff.learning.templates.build_apply_optimizer_finalizer(
            tff.learning.optimizers.build_sgdm(learning_rate=1.0), weights_type
        ),
    )
