"""The running weighted sum: its value, its error, and that it does not grow."""

from __future__ import annotations

import gc
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from aggregation_server.aggregate import Aggregate
from device_runtime import codec
from device_runtime.codec import EncodedUpdate
from device_runtime.tensors import TensorSpec
from device_runtime.update import ClientUpdate

SPECS = (TensorSpec("kernel", (3, 2)), TensorSpec("bias", (2,)))


MODEL = "ab" * 16


def sent(update: ClientUpdate, name: str = "f32", seed: int = 0, specs: Sequence[TensorSpec] = SPECS) -> EncodedUpdate:
    """An update as the server has it."""
    return codec.read_update(codec.encode(update, specs, MODEL, name, seed), specs, MODEL)


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
        aggregate.add(sent(update))
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
        update = ClientUpdate((np.array(value, np.float32),), 2**64 - 1, 1)
        aggregate.add(sent(update, specs=[TensorSpec("scale", ())]))
    (mean,) = aggregate.result()
    assert mean.dtype == np.float32
    np.testing.assert_array_equal(mean, np.float32(2))


def test_small_deltas_survive_a_large_sum(make_update: Callable[..., ClientUpdate]) -> None:
    """A float32 sum would lose all of the 1s beside 2**24."""
    aggregate = Aggregate(SPECS)
    aggregate.add(sent(make_update(2.0**24)))
    for _ in range(2**10):
        aggregate.add(sent(make_update(1.0)))
    expected = np.float32((2.0**24 + 2**10) / (2**10 + 1))
    assert all((tensor == expected).all() for tensor in aggregate.result())


def test_a_large_delta_times_its_weight_does_not_overflow(make_update: Callable[..., ClientUpdate]) -> None:
    aggregate = Aggregate(SPECS)
    aggregate.add(sent(make_update(3e38, weight=2**64 - 1)))
    assert all((tensor == np.float32(3e38)).all() for tensor in aggregate.result())


def test_mean_of_no_updates_is_an_error_and_not_zeros() -> None:
    with pytest.raises(ValueError, match="the mean of no updates is not defined"):
        Aggregate(SPECS).result()


def test_loss_is_none_where_nobody_reported_one_or_it_overflows(make_update: Callable[..., ClientUpdate]) -> None:
    aggregate = Aggregate(SPECS)
    aggregate.add(sent(ClientUpdate(make_update().delta, 1, 1)))
    assert aggregate.loss is None
    aggregate.add(sent(make_update(loss=2.0)))
    assert aggregate.loss == 2.0
    aggregate.add(sent(make_update(loss=1e308, weight=1000)))
    assert aggregate.loss is None


@pytest.mark.parametrize("name", codec.CODECS)
def test_the_sum_is_that_of_the_decoded_updates(name: str) -> None:
    """Rotated updates are added as they are; more of them than go into float32 at a time."""
    updates = random_updates(37)
    aggregate = Aggregate(SPECS)
    decoded = []
    for seed, update in enumerate(updates):
        encoded = sent(update, name, seed)
        aggregate.add(encoded)
        decoded.append(encoded.values().astype(np.float64))
    expected = np.average(decoded, axis=0, weights=[update.weight for update in updates])
    mean = np.concatenate([tensor.reshape(-1) for tensor in aggregate.result()])
    np.testing.assert_allclose(mean, expected, atol=2e-6)
    assert [tensor.shape for tensor in aggregate.result()] == [(3, 2), (2,)], "asking again changes nothing"
    np.testing.assert_array_equal(np.concatenate([tensor.reshape(-1) for tensor in aggregate.result()]), mean)


def test_updates_of_several_codecs_are_averaged_together() -> None:
    updates = random_updates(len(codec.CODECS))
    aggregate = Aggregate(SPECS)
    for update, name in zip(updates, codec.CODECS, strict=True):
        aggregate.add(sent(update, name))
    decoded = [sent(update, name).values() for update, name in zip(updates, codec.CODECS, strict=True)]
    expected = np.average(decoded, axis=0, weights=[update.weight for update in updates])
    np.testing.assert_allclose(
        np.concatenate([tensor.reshape(-1) for tensor in aggregate.result()]), expected, atol=2e-6
    )


@pytest.mark.parametrize("name", ["f32", "q8", "q1"])
def test_memory_does_not_grow_with_the_number_of_reports(name: str) -> None:
    specs = (TensorSpec("kernel", (50_000,)),)
    aggregate = Aggregate(specs)
    update = ClientUpdate((np.ones(50_000, np.float32),), 1, 1, {"loss": 1.0})
    aggregate.add(sent(update, name, specs=specs))
    data = codec.encode(update, specs, MODEL, name, 0)
    tracemalloc.start()
    try:
        kept = []
        for _ in range(2):
            for _ in range(100):
                aggregate.add(codec.read_update(data, specs, MODEL))
            gc.collect()
            kept.append(tracemalloc.get_traced_memory()[0])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept[1] - kept[0] < 5_000
    assert peak < 4 * update.delta[0].nbytes, "more than one update in float32 and in float64"


@pytest.mark.parametrize("name", ["q8", "q4", "q2", "q1"])
def test_a_sum_of_hostile_updates_that_overflows_is_not_finite_and_says_nothing(name: str) -> None:
    """Each is finite, with the largest scale and weight that there are; warnings are errors in the tests."""
    specs = (TensorSpec("t", (100,)),)
    values = (np.random.default_rng(0).normal(size=100) * 2.0**57).astype(np.float32)
    aggregate = Aggregate(specs)
    for seed in range(33):
        update = ClientUpdate((values * np.float32((-1) ** seed),), 2**64 - 1, 7)
        content = bytearray(codec.encode(update, specs, MODEL, name, seed)[:-4])
        content[-4:] = struct.pack("<hH", 496, 0xFFFF)  # the exponent, and the levels of four blocks
        report = codec.read_update(bytes(content) + struct.pack("<I", zlib.crc32(content)), specs, MODEL)
        assert report.finite
        aggregate.add(report)
    assert aggregate.result()[0].shape == (100,)
