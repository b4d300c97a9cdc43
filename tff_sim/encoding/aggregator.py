"""The weighted mean of updates that are encoded on their way, as a TFF aggregator."""

from __future__ import annotations

import collections
import math
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from device_runtime.codec import encoded_size
from device_runtime.tensors import TensorSpec
from tff_sim.encoding.sums import sum_of

METRICS = ("loss",)  # what a device reports beside its update


class EncodedMeanFactory(tff.aggregators.WeightedAggregationFactory):
    """Does what devices and server do: the mean is, to the bit, that of a fleet whose updates come in the same order.

    Values have the type <delta=<float32[…], …>, seed=int64>: a client's pseudo-gradient, weights before minus weights
    after, and its seed in this round (`device_runtime.work.client_seed`). What is encoded is the change, weights after
    minus weights before; the mean is a pseudo-gradient again, 0/0, NaN, where no client counts. Weights are numbers of
    examples; a client of weight 0 did not report.

    The state is the number of the round, from 1, on which the rotation depends. Measurements are ``clients`` and
    ``examples`` in the mean, ``non_finite``, the clients that count for nothing because a device would have refused to
    encode their updates, and ``upload_bytes``, as on the wire.

    Args:
        codec: one of `device_runtime.codec.CODECS`.

    Raises:
        InputError: the codec is not known.
    """

    def __init__(self, codec: str) -> None:
        sum_of(codec, 1)
        self._codec = codec

    def create(self, value_type: Any, weight_type: Any) -> Any:
        """The `tff.templates.AggregationProcess` for values and weights of these types.

        Raises:
            TypeError: the values are not of the type above.
        """
        shapes = _shapes(value_type)
        specs = [TensorSpec("", shape, "float32") for shape in shapes]
        update_bytes = encoded_size(specs, self._codec, METRICS)
        total = sum_of(self._codec, _size(shapes))

        @tff.tensorflow.computation(value_type, weight_type, np.int64)
        def encode(value: Any, weight: Any, round_number: Any) -> Any:
            encoded, fine = total.encode(_delta(value), round_number, value["seed"])
            weight = tf.cast(weight, tf.float32)
            return collections.OrderedDict(encoded=encoded, seed=value["seed"], weight=weight, fine=fine)

        @tff.tensorflow.computation
        def zero() -> Any:
            return collections.OrderedDict(
                total=total.zero(), examples=tf.zeros([], tf.float64), clients=tf.constant(0), non_finite=tf.constant(0)
            )

        sum_type = zero.type_signature.result

        @tff.tensorflow.computation(sum_type, encode.type_signature.result)
        def accumulate(done: Any, new: Any) -> Any:
            def added() -> Any:
                return collections.OrderedDict(
                    total=total.add(done["total"], new["encoded"], new["seed"], new["weight"]),
                    examples=done["examples"] + tf.cast(new["weight"], tf.float64),
                    clients=done["clients"] + 1,
                    non_finite=done["non_finite"],
                )

            def refused() -> Any:
                return collections.OrderedDict(done, non_finite=done["non_finite"] + 1)

            return tf.cond(new["weight"] > 0, lambda: tf.cond(new["fine"], added, refused), lambda: done)

        @tff.tensorflow.computation(sum_type, sum_type)
        def merge(one: Any, other: Any) -> Any:
            return collections.OrderedDict(
                total=total.merge(one["total"], other["total"]),
                **{name: one[name] + other[name] for name in ("examples", "clients", "non_finite")},
            )

        @tff.tensorflow.computation(sum_type)
        def report(done: Any) -> Any:
            return done

        @tff.tensorflow.computation(sum_type, np.int64)
        def mean(done: Any, round_number: Any) -> Any:
            values = total.mean(done["total"], done["examples"], round_number)
            return _pseudo_gradient(values, shapes)

        @tff.tensorflow.computation(sum_type)
        def measure(done: Any) -> Any:
            return collections.OrderedDict(
                clients=done["clients"],
                examples=tf.cast(done["examples"], tf.int64),
                non_finite=done["non_finite"],
                upload_bytes=tf.cast(done["clients"], tf.int64) * update_bytes,
            )

        @tff.federated_computation(
            tff.FederatedType(np.int64, tff.SERVER),
            tff.FederatedType(value_type, tff.CLIENTS),
            tff.FederatedType(weight_type, tff.CLIENTS),
        )
        def next_fn(round_number: Any, values: Any, weights: Any) -> Any:
            encoded = tff.federated_map(encode, (values, weights, tff.federated_broadcast(round_number)))
            summed = tff.federated_aggregate(encoded, zero(), accumulate, merge, report)
            return tff.templates.MeasuredProcessOutput(
                state=tff.federated_map(next_round, round_number),
                result=tff.federated_map(mean, (summed, round_number)),
                measurements=tff.federated_map(measure, summed),
            )

        return tff.templates.AggregationProcess(first_round, next_fn)


def build_decoder(codec: str, value_type: Any) -> Any:
    """A TFF computation: a value as of `EncodedMeanFactory` and a round's number → what a server decodes of it.

    That is a pseudo-gradient again, as a list of tensors; NaN where a device would have refused to encode the update.

    Raises:
        InputError: the codec is not known.
        TypeError: the values are not of that type.
    """
    shapes = _shapes(value_type)
    total = sum_of(codec, _size(shapes))

    @tff.tensorflow.computation(value_type, np.int64)
    def decode(value: Any, round_number: Any) -> Any:
        encoded, fine = total.encode(_delta(value), round_number, value["seed"])
        one = total.add(total.zero(), encoded, value["seed"], tf.constant(1.0))
        values = total.mean(one, tf.constant(1.0, tf.float64), round_number)
        return _pseudo_gradient(tf.where(fine, values, np.nan), shapes)

    return decode


@tff.tensorflow.computation
def _one() -> Any:
    return tf.constant(1, tf.int64)


@tff.federated_computation
def first_round() -> Any:
    """The number of the first round, at the server."""
    return tff.federated_eval(_one, tff.SERVER)


@tff.tensorflow.computation(np.int64)
def next_round(number: Any) -> Any:
    """The number of the round after another."""
    return number + 1


def _delta(value: Any) -> Any:
    """The change of all weights, float32 [n]: of each tensor's pseudo-gradient the other sign."""
    return -tf.concat([tf.reshape(tensor, [-1]) for tensor in value["delta"]], axis=0)


def _pseudo_gradient(values: Any, shapes: list[tuple[int, ...]]) -> Any:
    """A change of all weights, float32 [n], as tensors of these shapes with the other sign."""
    values = tf.where(values == 0, 0.0, -values)  # the server's zeros have no sign
    parts = tf.split(values, [_size([shape]) for shape in shapes])
    return [tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]


def _size(shapes: list[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def is_list_of_float32(type_spec: Any) -> bool:
    """Whether a TFF type is a list of float32 tensors, at least one, as weights and deltas are."""
    elements = tff.structure.to_elements(type_spec) if isinstance(type_spec, tff.StructType) else []
    return bool(elements) and all(
        name is None and isinstance(tensor, tff.TensorType) and tensor == tff.TensorType(np.float32, tensor.shape)
        for name, tensor in elements
    )


def _shapes(value_type: Any) -> list[tuple[int, ...]]:
    """The shapes of a delta's tensors."""
    fields = dict(tff.structure.to_elements(value_type)) if isinstance(value_type, tff.StructType) else {}
    if (
        list(fields) != ["delta", "seed"]
        or fields["seed"] != tff.TensorType(np.int64)
        or not is_list_of_float32(fields["delta"])
    ):
        raise TypeError(f"expected values of the type <delta=<float32[...],...>,seed=int64>, not {value_type}")
    return [tuple(tensor.shape) for tensor in fields["delta"]]
