"""From the clients' deltas to one: what counts, and the mean or median of it, as a TFF aggregation process."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from device_runtime.work import ClientWork
from tff_sim.algorithms.algorithm import Algorithm
from tff_sim.algorithms.robust import build_robust_aggregator
from tff_sim.algorithms.server_optimizer import all_finite
from tff_sim.algorithms.stateless import stateless_aggregation
from tff_sim.encoding.aggregator import EncodedMeanFactory, build_decoder, first_round, next_round


def build_aggregator(algorithm: Algorithm, work: ClientWork, update_type: Any) -> Any:
    """A weighted `tff.templates.AggregationProcess`: next(state, updates, numbers of examples).

    Its result has `update_type`. It is 0/0, NaN, where no delta counts; the finalizer then takes no step.
    Its measurements are those of the aggregator itself, then ``clients`` and ``examples``, which are those that count,
    and `tff_sim.algorithms.algorithm.COUNTS`.

    Updates are encoded as the codec says, but for `f32`: their mean is then that of the fleet's server, to the bit, and
    for what its server does not do, each is decoded. The deltas are looked at where they arrive, as a server can: after
    they were decoded. A client that means harm would not clip its own.

    Args:
        algorithm: what counts, and how.
        work: of the clients; names the codec of their updates.
        update_type: TFF's type of a pseudo-gradient, a list of float32 tensors; updates are of `encoded_type` of it.
    """
    if work.codec == "f32":
        return _screened_aggregator(algorithm, update_type)
    value_type = encoded_type(work, update_type)
    if algorithm.weighted and algorithm.clip_norm is None and algorithm.zero_norm is None:
        return _encoded_mean(work.codec, value_type)
    return _decoding(work.codec, value_type, _screened_aggregator(algorithm, update_type))


def encoded_type(work: ClientWork, update_type: Any) -> Any:
    """TFF's type of what clients give to the aggregator: <delta=update_type, seed=int64>, or with `f32` the delta."""
    if work.codec == "f32":
        return update_type
    return tff.to_type(collections.OrderedDict(delta=update_type, seed=tff.TensorType(np.int64)))


def _encoded_mean(codec: str, value_type: Any) -> Any:
    inner = EncodedMeanFactory(codec).create(value_type, tff.TensorType(np.float32))

    @tff.tensorflow.computation(inner.next.type_signature.result.measurements.member)
    def complete(measurements: Any) -> Any:
        return collections.OrderedDict(**measurements, zeroed=0, clipped=0)

    @tff.federated_computation(
        inner.initialize.type_signature.result,
        tff.FederatedType(value_type, tff.CLIENTS),
        tff.FederatedType(np.float32, tff.CLIENTS),
    )
    def next_fn(state: Any, updates: Any, examples: Any) -> Any:
        output = inner.next(state, updates, examples)
        measurements = tff.federated_map(complete, output.measurements)
        return tff.templates.MeasuredProcessOutput(output.state, output.result, measurements)

    return tff.templates.AggregationProcess(inner.initialize, next_fn)


def _decoding(codec: str, value_type: Any, inner: Any) -> Any:
    """The inner aggregation of what is decoded; the state is the round's number beside the inner one's."""
    decode = build_decoder(codec, value_type)

    @tff.federated_computation
    def initialize() -> Any:
        return tff.federated_zip((first_round(), inner.initialize()))

    @tff.federated_computation(
        initialize.type_signature.result,
        tff.FederatedType(value_type, tff.CLIENTS),
        tff.FederatedType(np.float32, tff.CLIENTS),
    )
    def next_fn(state: Any, updates: Any, examples: Any) -> Any:
        number, before = state
        decoded = tff.federated_map(decode, (updates, tff.federated_broadcast(number)))
        output = inner.next(before, decoded, examples)
        after = tff.federated_zip((tff.federated_map(next_round, number), output.state))
        return tff.templates.MeasuredProcessOutput(after, output.result, output.measurements)

    return tff.templates.AggregationProcess(initialize, next_fn)


def _screened_aggregator(algorithm: Algorithm, update_type: Any) -> Any:
    if algorithm.aggregator == "mean":
        return _mean(algorithm, update_type)
    inner = build_robust_aggregator(algorithm, update_type)

    @tff.tensorflow.computation(update_type, np.float32)
    @tf.function
    def screen(update: Any, examples: Any) -> Any:
        return screened(algorithm, update, examples)

    @tff.federated_computation(
        inner.initialize.type_signature.result,
        tff.FederatedType(update_type, tff.CLIENTS),
        tff.FederatedType(np.float32, tff.CLIENTS),
    )
    def next_fn(state: Any, updates: Any, examples: Any) -> Any:
        looked_at = tff.federated_map(screen, (updates, examples))
        output = inner.next(state, looked_at.update, looked_at.weight)
        counts = tff.federated_sum(looked_at.counts)
        measurements = tff.federated_map(_flat, (output.measurements, counts))
        return tff.templates.MeasuredProcessOutput(output.state, output.result, measurements)

    return tff.templates.AggregationProcess(inner.initialize, next_fn)


def _mean(algorithm: Algorithm, update_type: Any) -> Any:
    """The mean of `tff.aggregators.MeanFactory`, to the bit, of what counts.

    There, a client's update is multiplied in one computation, and each of what is summed takes another for each
    client; here all is one, and one sum: of a small model's round, calls of TensorFlow are a large part.
    """

    @tff.tensorflow.computation(update_type, np.float32)
    @tf.function
    def weigh(update: Any, examples: Any) -> Any:
        return screened(algorithm, update, examples, weighted=True)

    @tff.tensorflow.computation(weigh.type_signature.result)
    def divide(summed: Any) -> Any:
        return [total / summed["weight"] for total in summed["update"]]

    def aggregate(updates: Any, examples: Any) -> tuple[Any, Any]:
        summed = tff.federated_sum(tff.federated_map(weigh, (updates, examples)))
        return tff.federated_map(divide, summed), summed.counts

    return stateless_aggregation(update_type, aggregate)


def screened(algorithm: Algorithm, update: Any, examples: tf.Tensor, weighted: bool = False) -> Any:
    """One client's update as it counts: its `update`, its `weight` in the mean, and `counts`.

    Args:
        algorithm: of the server.
        update: list of float32 tensors.
        examples: n_k, float32 [].
        weighted: multiply the update by its weight.
    """
    finite = all_finite(update)
    counts, zeroed, clipped, scale = verdict(algorithm, finite, norm(update))
    weight = tf.where(counts, examples if algorithm.weighted else 1.0, 0.0)

    def value(tensor: tf.Tensor) -> tf.Tensor:
        if algorithm.clip_norm is not None:
            tensor = tf.cast(tf.cast(tensor, tf.float64) * scale, tf.float32)
        return tensor * weight if weighted else tensor

    return collections.OrderedDict(
        # Zeros, and not the update times its weight of 0: 0 · NaN is NaN.
        update=tf.cond(counts, lambda: list(map(value, update)), lambda: list(map(tf.zeros_like, update))),
        weight=weight,
        counts=collections.OrderedDict(
            clients=tf.cast(counts, tf.int32),
            examples=tf.where(counts, tf.cast(examples, tf.int64), 0),
            non_finite=tf.cast(~finite, tf.int32),
            zeroed=tf.cast(zeroed, tf.int32),
            clipped=tf.cast(clipped, tf.int32),
        ),
    )


def norm(update: Any) -> tf.Tensor:
    """The L2 norm of all tensors together, float64 []: of float32 numbers none has a square that float64 can't hold."""
    return tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(tf.cast(tensor, tf.float64))) for tensor in update]))


def verdict(algorithm: Algorithm, finite: tf.Tensor, norm: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Of a delta: whether it counts, was zeroed, was clipped, bool []; and what it is multiplied by, float64 [].

    Args:
        algorithm: of the server.
        finite: bool [].
        norm: L2, float64 []; not looked at, and so not computed, where the algorithm has no limit.
    """
    zeroed = clipped = tf.constant(False)
    if algorithm.zero_norm is not None:
        zeroed = finite & (norm > algorithm.zero_norm)
    counts = finite & ~zeroed
    scale = tf.constant(1.0, tf.float64)
    if algorithm.clip_norm is not None:
        clipped = counts & (norm > algorithm.clip_norm)
        scale = tf.where(clipped, algorithm.clip_norm / norm, scale)
    return counts, zeroed, clipped, scale


@tff.tensorflow.computation
def _flat(measurements: Any, counts: Any) -> Any:
    return collections.OrderedDict(**measurements, **counts)
