"""Coordinate-wise median and trimmed mean (Yin et al. 2018), as a TFF aggregation process.

Both need all values of a coordinate at once, so the server holds the whole cohort's updates: cohort × model in memory,
a few times over, where a mean needs the model once.
"""

from __future__ import annotations

import collections
import math
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_sim.algorithms.algorithm import Algorithm
from tff_sim.algorithms.stateless import stateless_aggregation

SLOTS = 16
_COLUMNS = 2**16


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
    kept = tf.sort(values, axis=0)[cut : count - cut]
    return _sum(kept) / tf.cast(tf.shape(kept)[0], tf.float32)


def _sum(rows: tf.Tensor) -> tf.Tensor:
    """Float32 [m, …] → [...]: the rows' second half is added to their first until one is left; of an odd number, the
    middle one waits.

    `tf.reduce_sum` adds in an order of its own, which differs from column to column; the fleet's server adds in this.
    """

    def halved(rows: tf.Tensor) -> tuple[tf.Tensor]:
        count = tf.shape(rows)[0]
        pairs = count // 2
        return (tf.concat([rows[:pairs] + rows[count - pairs :], rows[pairs : count - pairs]], axis=0),)

    shape = tf.TensorShape([None, *rows.shape[1:]])
    (rows,) = tf.while_loop(lambda rows: tf.shape(rows)[0] > 1, halved, (rows,), shape_invariants=(shape,))
    return rows[0]


def build_robust_aggregator(algorithm: Algorithm, update_type: Any) -> Any:
    """A `tff.templates.AggregationProcess` of the updates whose weight is not 0, all of which count alike.

    Its result is NaN where there is none. It has neither state nor measurements.

    Args:
        algorithm: with the aggregator ``median`` or ``trimmed_mean``.
        update_type: TFF's type of an update, a list of float32 tensors.
    """
    shapes = [tuple(tensor.shape) for tensor in update_type]
    sizes = [math.prod(shape) for shape in shapes]
    collected_type = tff.to_type([tff.TensorType(np.float32, [None, sum(sizes)])] * (2 * SLOTS + 1))

    @tff.tensorflow.computation
    def nothing() -> Any:
        return [no_rows(sum(sizes))] * (2 * SLOTS + 1)

    @tff.tensorflow.computation(collected_type, tff.to_type((update_type, np.float32)))
    def collect(collected: Any, one: Any) -> Any:
        update, weight = one
        row = tf.concat([tf.reshape(tensor, [1, -1]) for tensor in update], axis=1)
        return tf.cond(weight > 0, lambda: with_row(list(collected), row), lambda: list(collected))

    @tff.tensorflow.computation(collected_type, collected_type)
    def merge(one: Any, other: Any) -> Any:
        return [no_rows(sum(sizes))] * (2 * SLOTS) + [tf.concat([*one, *other], axis=0)]

    @tff.tensorflow.computation(collected_type)
    def report(collected: Any) -> Any:
        vectors = tf.split(_of_rows(algorithm, tf.concat(list(collected), axis=0)), sizes)
        return [tf.reshape(vector, shape) for vector, shape in zip(vectors, shapes, strict=True)]

    def aggregate(updates: Any, weights: Any) -> tuple[Any, Any]:
        pairs = tff.federated_zip((updates, weights))
        result = tff.federated_aggregate(pairs, nothing(), collect, merge, report)
        return result, tff.federated_value(collections.OrderedDict(), tff.SERVER)

    return stateless_aggregation(update_type, aggregate)


def no_rows(size: int) -> tf.Tensor:
    """Float32 [0, size] whose type says nothing of how many rows there are, as TFF's sums want it."""
    return tf.raw_ops.PlaceholderWithDefault(input=tf.zeros([0, size]), shape=[None, size])


def with_row(collected: list[tf.Tensor], row: tf.Tensor) -> list[tf.Tensor]:
    """What has been collected, and one more row.

    TFF keeps all that the sum ever was until the round ends, so rows that were joined anew at each step would take the
    square of the cohort. Here they stay where they are: in slots that are handed on, of one row each, then of as many
    rows as there are slots; only full slots are joined.
    """
    ones, many, rest = collected[:SLOTS], collected[SLOTS:-1], collected[-1]
    ones, joined = _pushed(ones, row)

    def passed_on() -> list[tf.Tensor]:
        moved, all_of_them = _pushed(many, joined)
        return [*ones, *moved, tf.concat([rest, all_of_them], axis=0)]

    return list(tf.cond(tf.shape(joined)[0] > 0, passed_on, lambda: [*ones, *many, rest]))


def _pushed(slots: list[tf.Tensor], rows: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
    """The slots with `rows` in the first and the others moved on; and what was in them if they were full."""
    none = rows[:0]
    full = tf.shape(slots[-1])[0] > 0
    moved = tf.cond(full, lambda: [rows] + [none] * (len(slots) - 1), lambda: [rows, *slots[:-1]])
    return moved, tf.cond(full, lambda: tf.concat(slots, axis=0), lambda: none)


def _of_rows(algorithm: Algorithm, rows: tf.Tensor) -> tf.Tensor:
    """The median or trimmed mean of float32 [m, n] over m; NaN where m is 0."""

    def of(values: tf.Tensor) -> tf.Tensor:
        return median(values) if algorithm.aggregator == "median" else trimmed_mean(values, algorithm.trimmed)

    size = rows.shape[1]
    return tf.cond(
        tf.shape(rows)[0] > 0,
        # sorting takes its values several times over: some coordinates at a time
        lambda: tf.concat([of(rows[:, start : start + _COLUMNS]) for start in range(0, size, _COLUMNS)], axis=0),
        lambda: tf.fill([size], tf.constant(np.nan, tf.float32)),
    )
