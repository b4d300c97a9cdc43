"""What counts of the clients' deltas, and what is made of them, against numpy."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from device_runtime.work import ClientWork
from tff_sim.algorithms.aggregation import build_aggregator
from tff_sim.algorithms.algorithm import Algorithm, ServerOptimizer
from tff_sim.algorithms.fed_avg import build_server_update
from tff_sim.algorithms.robust import SLOTS, median, no_rows, trimmed_mean, with_row

pytestmark = [
    pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning"),
    pytest.mark.usefixtures("tff_worker"),
]

SHAPES = [(3, 2), (5,), ()]
EXAMPLES = [1, 10, 3, 6, 2]
Delta = list[npt.NDArray[np.float32]]


def _deltas(count: int = 5) -> list[Delta]:
    """Deltas of the lengths 1, 2, 3, …"""
    rng = np.random.default_rng(3)
    drawn = [[rng.normal(size=shape) for shape in SHAPES] for _ in range(count)]
    lengths = [np.sqrt(sum(np.square(tensor).sum() for tensor in delta)) for delta in drawn]
    return [
        [np.asarray(tensor * (k + 1) / lengths[k], np.float32) for tensor in delta] for k, delta in enumerate(drawn)
    ]


def _length(delta: Delta) -> float:
    return float(np.sqrt(sum(np.square(tensor.astype(np.float64)).sum() for tensor in delta)))


@functools.cache
def _process(algorithm: Algorithm) -> Any:
    """For a model of zeros; TFF compiles each once."""
    return build_server_update(ClientWork(), tuple(np.zeros(shape, np.float32) for shape in SHAPES), algorithm)


class _Server:
    """Rounds from the start on."""

    def __init__(self, algorithm: Algorithm) -> None:
        self._process = _process(algorithm)
        self.state = self._process.initialize()

    def round(self, deltas: list[Delta], examples: list[int]) -> tuple[Delta, dict[str, int]]:
        """What the model moved by, and what was counted."""
        results = [
            tff.learning.templates.ClientResult([-tensor for tensor in delta], np.float32(count))
            for delta, count in zip(deltas, examples, strict=True)
        ]
        before = self.weights
        self.state, metrics = self._process.next(self.state, results)
        names = ("clients", "examples", "non_finite", "zeroed", "clipped")
        counts = {name: int(metrics["aggregator"][name]) for name in names}
        counts["no_step"] = int(metrics["finalizer"]["update_non_finite"])
        return [after - w for after, w in zip(self.weights, before, strict=True)], counts

    @property
    def weights(self) -> Delta:
        return [np.asarray(w) for w in self.state.global_model_weights.trainable]


def _mean(deltas: list[Delta], weights: Any) -> Delta:
    return [np.average(np.stack(tensors), axis=0, weights=weights) for tensors in zip(*deltas, strict=True)]


def _assert_close(got: Delta, want: Any) -> None:
    for value, expected in zip(got, want, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def _counts(clients: int, examples: int, **others: int) -> dict[str, int]:
    nothing = dict.fromkeys(("non_finite", "zeroed", "clipped", "no_step"), 0)
    return {"clients": clients, "examples": examples} | nothing | others


def test_a_mean_is_weighted_by_examples_or_uniform() -> None:
    deltas = _deltas()
    weighted, counts = _Server(Algorithm()).round(deltas, EXAMPLES)
    uniform, again = _Server(Algorithm(weighting="uniform")).round(deltas, EXAMPLES)
    _assert_close(weighted, _mean(deltas, EXAMPLES))
    _assert_close(uniform, _mean(deltas, [1] * 5))
    assert np.abs(weighted[0] - uniform[0]).max() > 0.1
    assert counts == again == _counts(5, 22)  # examples are counted as they are, whatever they weigh


def test_a_mean_is_that_of_tff_to_the_bit() -> None:
    types = tff.to_type([tff.TensorType(np.float32, shape) for shape in SHAPES])
    tffs = tff.aggregators.MeanFactory().create(types, tff.TensorType(np.float32))
    ours = build_aggregator(Algorithm(), ClientWork(), types)
    rng = np.random.default_rng(0)
    deltas = [[rng.normal(size=shape).astype(np.float32) for shape in SHAPES] for _ in range(13)]
    examples = rng.integers(1, 600, len(deltas)).astype(np.float32).tolist()
    got, want = (process.next(process.initialize(), deltas, examples).result for process in (ours, tffs))
    assert [np.asarray(tensor).tobytes() for tensor in got] == [np.asarray(tensor).tobytes() for tensor in want]


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_a_long_delta_is_scaled_down_to_the_norm(weighting: str) -> None:
    deltas = _deltas()
    limit = 3.5
    got, counts = _Server(Algorithm(clip_norm=limit, weighting=weighting)).round(deltas, EXAMPLES)
    clipped = [[tensor * min(1, limit / _length(delta)) for tensor in delta] for delta in deltas]
    _assert_close(got, _mean(clipped, EXAMPLES if weighting == "examples" else [1] * 5))
    assert counts == _counts(5, 22, clipped=2)


def test_a_long_delta_counts_as_none() -> None:
    deltas = _deltas()
    got, counts = _Server(Algorithm(zero_norm=4.5)).round(deltas, EXAMPLES)
    _assert_close(got, _mean(deltas[:4], EXAMPLES[:4]))
    assert counts == _counts(4, 20, zeroed=1)


def test_what_is_zeroed_is_not_clipped_and_what_is_not_finite_is_neither() -> None:
    deltas = _deltas()
    deltas[1][0][0, 0] = np.nan
    low, high = 0.5, 4.5
    got, counts = _Server(Algorithm(clip_norm=low, zero_norm=high)).round(deltas, EXAMPLES)
    left = [deltas[0], deltas[2], deltas[3]]
    clipped = [[tensor * (low / _length(delta)) for tensor in delta] for delta in left]
    _assert_close(got, _mean(clipped, [1, 3, 6]))
    assert counts == _counts(3, 10, non_finite=1, zeroed=1, clipped=3)


def test_a_delta_just_as_long_as_the_limits_is_left_alone() -> None:
    delta: Delta = [np.zeros(shape, np.float32) for shape in SHAPES]
    delta[1][:2] = 3, 4
    exact, counts = _Server(Algorithm(clip_norm=5)).round([delta], [1])
    _, others = _Server(Algorithm(zero_norm=5)).round([delta], [1])
    _assert_close(exact, delta)
    assert counts == others == _counts(1, 1)


def test_a_delta_whose_squares_no_float32_holds_is_clipped_like_others() -> None:
    deltas = _deltas(2)
    huge = [(tensor * np.float32(1e30)).astype(np.float32) for tensor in deltas[1]]
    got, counts = _Server(Algorithm(clip_norm=1.0, weighting="uniform")).round([deltas[0], huge], [1, 1])
    clipped = [[tensor / max(1, _length(delta)) for tensor in delta] for delta in (deltas[0], huge)]
    _assert_close(got, _mean(clipped, [1, 1]))
    assert counts["clipped"] >= 1
    assert counts["clients"] == 2


@pytest.mark.parametrize("aggregator", ["mean", "median", "trimmed_mean"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_delta_that_is_not_finite_counts_as_none(aggregator: str, bad: float) -> None:
    server = _Server(Algorithm(aggregator=aggregator, trim=0.4 if aggregator == "trimmed_mean" else None))
    honest = _deltas()
    want, _ = server.round(honest[:2] + honest[3:], EXAMPLES[:2] + EXAMPLES[3:])
    deltas = _deltas()
    deltas[2][1][3] = bad  # one coordinate of one tensor
    got, counts = server.round(deltas, EXAMPLES)
    _assert_close(got, want)
    assert counts == _counts(4, 19, non_finite=1)


@pytest.mark.parametrize(
    "algorithm",
    [
        Algorithm(),
        Algorithm(aggregator="median"),
        Algorithm(aggregator="trimmed_mean", trim=0.4),
        Algorithm(ServerOptimizer("momentum")),
        Algorithm(ServerOptimizer("fedyogi")),
    ],
    ids=["mean", "median", "trimmed_mean", "momentum", "fedyogi"],
)
def test_without_any_finite_delta_the_model_stays_as_it_is(algorithm: Algorithm) -> None:
    server = _Server(algorithm)
    moved, _ = server.round(_deltas(), EXAMPLES)  # the optimiser has a moment from here on, that would move it on
    before = server.state.finalizer
    bad = [[np.full(shape, np.nan, np.float32) for shape in SHAPES]] * 2
    stayed, counts = server.round(bad, [1, 2])
    assert max(np.abs(tensor).max() for tensor in moved) > 1e-3
    assert max(np.abs(tensor).max() for tensor in stayed) == 0
    tf.nest.map_structure(np.testing.assert_array_equal, server.state.finalizer, before)
    assert counts == _counts(0, 0, non_finite=2, no_step=1)
    again, _ = server.round(_deltas(), EXAMPLES)
    assert max(np.abs(tensor).max() for tensor in again) > 1e-3  # and it goes on


def _trimmed_in_numpy(values: npt.NDArray[np.float32], cut: int) -> Any:
    return np.sort(values, axis=0)[cut : len(values) - cut].mean(axis=0)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_a_round_of_medians_and_trimmed_means(count: int) -> None:
    deltas = _deltas(count)
    got, counts = _Server(Algorithm(aggregator="median")).round(deltas, EXAMPLES[:count])
    _assert_close(got, [np.median(np.stack(tensors), axis=0) for tensors in zip(*deltas, strict=True)])
    assert counts == _counts(count, sum(EXAMPLES[:count]))
    got, _ = _Server(Algorithm(aggregator="trimmed_mean", trim=0.4)).round(deltas, EXAMPLES[:count])
    cut = {1: 0, 2: 0, 3: 1, 4: 1, 5: 2}[count]
    _assert_close(got, [_trimmed_in_numpy(np.stack(tensors), cut) for tensors in zip(*deltas, strict=True)])


def test_a_minority_cannot_move_a_median_or_a_trimmed_mean_far() -> None:
    honest = _deltas()
    wild: list[Delta] = [[np.full(shape, 1e6, np.float32) for shape in SHAPES]] * 2
    for algorithm in (Algorithm(aggregator="median"), Algorithm(aggregator="trimmed_mean", trim=0.4)):
        got, _ = _Server(algorithm).round(honest + wild, [*EXAMPLES, 1, 1])
        largest = np.max([[np.abs(tensor).max() for tensor in delta] for delta in honest], axis=0)
        assert all(np.abs(value).max() <= limit for value, limit in zip(got, largest, strict=True))


@pytest.mark.parametrize("count", [1, 2, 7, 10, 100])
def test_medians_and_trimmed_means_of_ties_are_those_of_numpy(count: int) -> None:
    values = np.random.default_rng(count).integers(-2, 3, (count, 4, 3)).astype(np.float32)
    np.testing.assert_array_equal(median(tf.constant(values)), np.median(values, axis=0))
    for percent in (0, 10, 25, 29, 49):
        cut = percent * count // 100  # in whole numbers: 0.29 · 100 is less than 29
        got = trimmed_mean(tf.constant(values), percent / 100)
        np.testing.assert_allclose(got, _trimmed_in_numpy(values, cut), rtol=1e-6, atol=1e-7)


def test_rows_are_collected_through_all_slots() -> None:
    count = SLOTS * SLOTS * 2 + SLOTS + 3  # the last slots were full and joined more than once
    rows = np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32)
    add = tf.function(lambda collected, row: with_row(list(collected), row), reduce_retracing=True)
    collected = [no_rows(2)] * (2 * SLOTS + 1)
    for row in rows:
        collected = add(collected, tf.constant(row[None]))
    assert [len(slot) for slot in collected].count(1) == SLOTS - (-count % SLOTS)
    got = np.concatenate([slot.numpy() for slot in collected])
    np.testing.assert_array_equal(got[np.lexsort(got.T)], rows[np.lexsort(rows.T)])


def test_a_median_of_more_clients_than_slots() -> None:
    deltas = _deltas(2 * SLOTS + 8)
    deltas[SLOTS - 1][0][0, 0] = np.nan  # takes no slot
    got, counts = _Server(Algorithm(aggregator="median")).round(deltas, [1] * len(deltas))
    left = deltas[: SLOTS - 1] + deltas[SLOTS:]
    _assert_close(got, [np.median(np.stack(tensors), axis=0) for tensors in zip(*left, strict=True)])
    assert counts == _counts(len(left), len(left), non_finite=1)


def test_something_is_always_left_of_a_trimmed_mean() -> None:
    values = np.array([[1.0], [3.0]], np.float32)
    np.testing.assert_array_equal(trimmed_mean(tf.constant(values), np.nextafter(0.5, 0)), [2.0])


def test_a_median_of_large_values_is_finite() -> None:
    values = np.full((2, 1), np.finfo(np.float32).max, np.float32)
    np.testing.assert_array_equal(median(tf.constant(values)), values[0])
