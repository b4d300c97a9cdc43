"""What an `Algorithm` makes of the clients' deltas, for the builders of `tff.learning.algorithms`."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from device_runtime.errors import InputError
from device_runtime.work import ClientWork
from tff_sim.algorithms.aggregation import build_aggregator
from tff_sim.algorithms.algorithm import Algorithm, ServerOptimizer
from tff_sim.encoding.aggregator import is_list_of_float32

_UNCODED = ClientWork()  # codec f32


class AlgorithmFactory(tff.aggregators.WeightedAggregationFactory):
    """Mean, median or trimmed mean, weighting, clipping and zeroing, as `build_fed_avg` does them.

    The ``model_aggregator`` of `tff.learning.algorithms.build_weighted_fed_avg` and its like. Values are lists of
    float32 tensors, and weights numbers of examples, float32. In the place of a delta that is not finite, TFF's clients
    give zeros of weight 0, which would move a median: what has weight 0 is ``non_finite`` here, and counts for nothing.

    Measurements are ``clients`` and ``examples``, which are those that count, and
    `tff_sim.algorithms.algorithm.COUNTS`. Where no value counts, the result is NaN; TFF's finalizer refuses it, and
    leaves the model as it is.

    Args:
        algorithm: its optimiser is none of the aggregator's business: `build_server_optimizer` makes the builder's
            ``server_optimizer_fn``.

    Raises:
        InputError: it is no `Algorithm`, or names an optimiser.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        if not isinstance(algorithm, Algorithm):
            raise InputError(f"expected an Algorithm, such as Algorithm(aggregator='median'), not {algorithm!r}")
        if algorithm.optimizer != ServerOptimizer():
            raise InputError(
                f"an aggregator has no optimizer: give {algorithm.optimizer.name!r} to TFF's builder, as"
                " server_optimizer_fn=build_server_optimizer(…)"
            )
        self._algorithm = algorithm

    def create(self, value_type: Any, weight_type: Any) -> Any:
        """The `tff.templates.AggregationProcess` for values and weights of these types.

        Raises:
            TypeError: the values are no list of float32 tensors, or the weights no float32.
        """
        if weight_type != tff.TensorType(np.float32) or not is_list_of_float32(value_type):
            raise TypeError(
                f"expected a list of float32 tensors and weights of float32, not {value_type} and {weight_type}"
            )
        inner = build_aggregator(self._algorithm, _UNCODED, value_type)

        @tff.tensorflow.computation(value_type, weight_type)
        def reported(value: Any, weight: Any) -> Any:
            return tf.nest.map_structure(lambda tensor: tf.where(weight > 0, tensor, np.nan), value)

        @tff.federated_computation(
            inner.initialize.type_signature.result,
            tff.FederatedType(value_type, tff.CLIENTS),
            tff.FederatedType(weight_type, tff.CLIENTS),
        )
        def next_fn(state: Any, values: Any, weights: Any) -> Any:
            return inner.next(state, tff.federated_map(reported, (values, weights)), weights)

        return tff.templates.AggregationProcess(inner.initialize, next_fn)
