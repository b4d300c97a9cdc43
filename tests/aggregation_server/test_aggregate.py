"""The running weighted sum: its value, its error, and that it does not grow."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from aggregation_server.aggregate import Aggregate
from device_runtime.tensors import TensorSpec
from device_runtime.update import ClientUpdate

SPECS = (TensorSpec("kernel", (3, 2)), TensorSpec("bias", (2,)))


def random_updates(count: int) -> list[ClientUpdate]:
    rng = np.random.default_rng(3)
    return [
        ClientUpdate(
            (rng.normal(size=(3, 2)).astype(np.float32), rng.normal(size=2).astype(np.float32)),
            int(rng.integers(1, 100)),
            1,
            {"loss": float(rng.uniform())},
        )
        for _ in range(count)
    ]


def test_result_is_the_mean_weighted_by_examples() -> None:
    updates = random_updates(20)
    aggregate = Aggregate(SPECS)
    for update in updates:
        aggregate.add(update)
    weights = [update.weight for update in updates]
    for index, tensor in enumerate(aggregate.result()):
        expected = np.average([u.delta[index].astype(np.float64) for u in updates], axis=0, weights=weights)
        assert tensor.dtype == np.float32
        np.testing.assert_allclose(tensor, expected, rtol=1e-6)
    assert (aggregate.clients, aggregate.examples) == (20, sum(weights))
    assert aggregate.loss == pytest.approx(np.average([u.metrics["loss"] for u in updates], weights=weights))


def test_a_weight_without_dimensions_and_the_largest_weights_that_a_report_can_carry() -> None:
    aggregate = Aggregate([TensorSpec("scale", ())])
    for value in (1.0, 3.0):
        aggregate.add(ClientUpdate((np.array(value, np.float32),), 2**64 - 1, 1))
    (mean,) = aggregate.result()
    assert mean.dtype == np.float32
    np.testing.assert_array_equal(mean, np.float32(2))


def test_small_deltas_survive_a_large_sum(make_update: Callable[..., ClientUpdate]) -> None:
    """A float32 sum would lose all of the 1s beside 2**24."""
    aggregate = Aggregate(SPECS)
    aggregate.add(make_update(2.0**24))
    for _ in range(2**10):
        aggregate.add(make_update(1.0))
    expected = np.float32((2.0**24 + 2**10) / (2**10 + 1))
    assert all((tensor == expected).all() for tensor in aggregate.result())


def test_a_large_delta_times_its_weight_does_not_overflow(make_update: Callable[..., ClientUpdate]) -> None:
    aggregate = Aggregate(SPECS)
    aggregate.add(make_update(3e38, weight=2**64 - 1))
    assert all((tensor == np.float32(3e38)).all() for tensor in aggregate.result())


def test_mean_of_no_updates_is_an_error_and_not_zeros() -> None:
    with pytest.raises(ValueError, match="the mean of no updates is not defined"):
        Aggregate(SPECS).result()


def test_loss_is_none_where_nobody_reported_one_or_it_overflows(make_update: Callable[..., ClientUpdate]) -> None:
    aggregate = Aggregate(SPECS)
    aggregate.add(ClientUpdate(make_update().delta, 1, 1))
    assert aggregate.loss is None
    aggregate.add(make_update(loss=2.0))
    assert aggregate.loss == 2.0
    aggregate.add(make_update(loss=1e308, weight=1000))
    assert aggregate.loss is None


def test_memory_does_not_grow_with_the_number_of_reports() -> None:
    specs = (TensorSpec("kernel", (50_000,)),)
    aggregate = Aggregate(specs)
    update = ClientUpdate((np.ones(50_000, np.float32),), 1, 1, {"loss": 1.0})
    aggregate.add(update)
    tracemalloc.start()
    try:
        for _ in range(200):
            aggregate.add(ClientUpdate((update.delta[0].copy(),), 1, 1, {"loss": 1.0}))
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 10_000
    assert peak < 4 * update.delta[0].nbytes, "more than one update in float32 and in float64"
