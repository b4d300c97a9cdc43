"""Coordinate-wise median and trimmed mean (Yin et al. 2018), as a TFF aggregation process.

Both need all values of a coordinate at once, so the server holds the whole cohort's updates: cohort × model in memory,
several times over while they are sorted, where a mean needs the model once.
"""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_sim.algorithm import Algorithm


def median(values: tf.Tensor) -> tf.Tensor:
    """The median of each coordinate: float32 [m, …] → [...]; of an even m, the mean of the two in the middle.

    m ≥ 1, and all values are finite.
    """
    count = tf.shape(values)[0]
    ordered = tf.sort(values, axis=0)
    return 0.5 * ordered[(count - 1) // 2] + 0.5 * ordered[count // 2]


def trimmed_mean(values: tf.Tensor, share: float) -> tf.Tensor:
    """The mean of each coordinate without its ⌊βm⌋ smallest and its ⌊βm⌋ largest values: float32 [m, …] → [...].

    m ≥ 1, and all values are finite.

    Args:
        values: of m clients.
        share: β, 0 ≤ β < 0.5.
    """
    count = tf.shape(values)[0]
    # 0.29 · 100 is 28.999…: what is whole but for rounding is meant to be whole
    cut = tf.cast(tf.floor(share * tf.cast(count, tf.float64) + 1e-9), tf.int32)
    cut = tf.minimum(cut, (count - 1) // 2)
    return tf.reduce_mean(tf.sort(values, axis=0)[cut : count - cut], axis=0)


def build_robust_aggregator(algorithm: Algorithm, update_type: Any) -> Any:
    """A `tff.templates.AggregationProcess` of the updates whose weight is not 0, all of which count alike.

    Its result is NaN where there is none. It has neither state nor measurements.

    Args:
        algorithm: with the aggregator ``median`` or ``trimmed_mean``.
        update_type: TFF's type of an update, a list of float32 tensors.
    """
    collected_type = tff.to_type([tff.TensorType(tensor.dtype.type, [None, *tensor.shape]) for tensor in update_type])

    @tff.tensorflow.computation
    def nothing() -> Any:
        return [tf.zeros([0, *tensor.shape], tensor.dtype) for tensor in update_type]

    @tff.tensorflow.computation(collected_type, tff.to_type((update_type, np.float32)))
    def collect(collected: Any, one: Any) -> Any:
        update, weight = one
        new = tf.cast(weight > 0, tf.int32)  # one row, or none
        return [
            tf.concat([rows, tf.expand_dims(tensor, 0)[:new]], axis=0)
            for rows, tensor in zip(collected, update, strict=True)
        ]

    @tff.tensorflow.computation(collected_type, collected_type)
    def merge(one: Any, other: Any) -> Any:
        return [tf.concat(rows, axis=0) for rows in zip(one, other, strict=True)]

    @tff.tensorflow.computation(collected_type)
    @tf.function
    def report(collected: Any) -> Any:
        return [_of_rows(algorithm, rows) for rows in collected]

    @tff.federated_computation
    def initialize() -> Any:
        return tff.federated_value((), tff.SERVER)

    @tff.federated_computation(
        initialize.type_signature.result,
        tff.FederatedType(update_type, tff.CLIENTS),
        tff.FederatedType(np.float32, tff.CLIENTS),
    )
    def next_fn(state: Any, updates: Any, weights: Any) -> Any:
        pairs = tff.federated_zip((updates, weights))
        result = tff.federated_aggregate(pairs, nothing(), collect, merge, report)
        none = tff.federated_value(collections.OrderedDict(), tff.SERVER)
        return tff.templates.MeasuredProcessOutput(state, result, none)

    return tff.templates.AggregationProcess(initialize, next_fn)


def _of_rows(algorithm: Algorithm, rows: tf.Tensor) -> tf.Tensor:
    def some() -> tf.Tensor:
        return median(rows) if algorithm.aggregator == "median" else trimmed_mean(rows, algorithm.trimmed)

    return tf.cond(tf.shape(rows)[0] > 0, some, lambda: tf.fill(rows.shape[1:], tf.constant(np.nan, rows.dtype)))
