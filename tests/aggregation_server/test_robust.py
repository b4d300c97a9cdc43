"""Median and trimmed mean over shards.

That they are the simulation's, where each client has a shard to itself, is in `tests/tff_sim/test_fleet_server.py`.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_server.aggregation.aggregate import aggregate
from aggregation_server.aggregation.robust import Aggregation, aggregate_round, deal
from device_runtime import codec
from device_runtime.codec import EncodedUpdate
from device_runtime.errors import InputError
from device_runtime.tensors import FloatArray, TensorSpec
from device_runtime.update import ClientUpdate

SPECS = (TensorSpec("kernel", (30, 20)), TensorSpec("bias", (7,)))
MODEL = "ab" * 16
SIZE = 607


def updates(count: int, name: str = "f32", seed: int = 0) -> list[EncodedUpdate]:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        delta = codec.shaped(rng.normal(size=SIZE).astype(np.float32), SPECS)
        update = ClientUpdate(delta, int(rng.integers(1, 1000)), 1, {"loss": float(rng.uniform())})
        made.append(codec.read_update(codec.encode(update, SPECS, MODEL, name, number), SPECS, MODEL))
    return made


def itself(update: EncodedUpdate) -> EncodedUpdate:
    return update


def combined(made: Sequence[EncodedUpdate], aggregation: Aggregation, number: int = 1, threads: int = 1) -> FloatArray:
    tensors, tally = aggregate_round(made, itself, SPECS, aggregation, (5, number), threads=threads)
    assert [tensor.shape for tensor in tensors] == [spec.shape for spec in SPECS]
    assert (tally.clients, tally.examples) == (len(made), sum(update.header.weight for update in made))
    return np.concatenate([tensor.reshape(-1) for tensor in tensors])


@given(clients=st.integers(1, 500), shards=st.integers(1, 60), key=st.tuples(st.integers(0, 2**64 - 1), st.integers(0)))
def test_every_client_is_in_one_shard_and_shards_are_alike(clients: int, shards: int, key: tuple[int, int]) -> None:
    key = (key[0], key[1] % 2**32)
    dealt = deal(clients, shards, key)
    assert len(dealt) == min(clients, shards)
    assert sorted(place for shard in dealt for place in shard) == list(range(clients))
    sizes = [len(shard) for shard in dealt]
    assert max(sizes) - min(sizes) <= 1
    assert all(shard == sorted(shard) for shard in dealt)
    assert dealt == deal(clients, shards, key)


def test_shards_are_dealt_at_random_and_anew_in_every_round() -> None:
    dealt = [deal(100, 10, (0, number)) for number in range(300)]
    assert len({tuple(map(tuple, shards)) for shards in dealt}) == 300
    together = sum(any({0, 1} <= set(shard) for shard in shards) for shards in dealt)
    assert together / 300 == pytest.approx(9 / 99, abs=0.06), "as often as any two"


def test_a_shard_is_the_mean_of_its_clients_whatever_they_say_they_weigh() -> None:
    made = updates(23)
    for name in ("median", "trimmed_mean"):
        means = [
            np.mean([made[place].values().astype(np.float64) for place in shard], axis=0).astype(np.float32)
            for shard in deal(23, 5, (5, 1))
        ]
        aggregation = Aggregation(name, 5, 0.2 if name == "trimmed_mean" else None)
        np.testing.assert_array_equal(combined(made, aggregation), aggregation.of(np.stack(means)))


def test_the_mean_is_the_weighted_one() -> None:
    made = updates(23, "q8")
    np.testing.assert_array_equal(combined(made, Aggregation()), aggregate(made, itself, SPECS).mean())


@pytest.mark.parametrize("aggregation", [Aggregation(), Aggregation("median", 7), Aggregation("trimmed_mean", 8, 0.25)])
def test_threads_change_no_bit(aggregation: Aggregation) -> None:
    made = updates(300, "q4")
    want = combined(made, aggregation)
    for threads in (2, 5):
        assert combined(made, aggregation, threads=threads).tobytes() == want.tobytes()


def test_fewer_spoilt_shards_than_are_trimmed_move_nothing_far() -> None:
    made = updates(40)
    for place in (3, 17, 30):
        delta = codec.shaped(np.full(SIZE, 1e30, np.float32), SPECS)
        body = codec.encode(ClientUpdate(delta, 2**64 - 1, 1), SPECS, MODEL, "f32", 0)
        made[place] = codec.read_update(body, SPECS, MODEL)
    for aggregation in (Aggregation("median", 20), Aggregation("trimmed_mean", 20, 0.15)):
        assert np.abs(combined(made, aggregation)).max() < 2
    assert np.abs(combined(made, Aggregation("trimmed_mean", 20, 0.1))).max() > 1e20, "two of three are left out"
    assert np.abs(combined(made, Aggregation())).max() > 1e20


def test_memory_is_that_of_the_shards_values_and_a_few_coordinates() -> None:
    specs = (TensorSpec("kernel", (300_000,)),)
    data = codec.encode(ClientUpdate((np.ones(300_000, np.float32),), 1, 1), specs, MODEL, "q8", 0)
    for shards, name in ((10, "median"), (40, "trimmed_mean")):
        tracemalloc.start()
        try:
            aggregate_round(
                range(2 * shards),
                lambda _: codec.read_update(data, specs, MODEL),
                specs,
                Aggregation(name, shards),
                (0, 1),
            )
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        rows, sums = shards * 4 * 300_000, 3 * 12.2 * 300_000
        assert rows < peak < rows + max(sums + 1_300_000, 800_000 * shards)


def test_the_median_of_no_updates_is_an_error() -> None:
    for aggregation in (Aggregation(), Aggregation("median", 3)):
        with pytest.raises(ValueError, match="the mean of no updates is not defined"):
            combined([], aggregation)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "mode"}, "--aggregator should be one of mean, median, trimmed_mean, not 'mode'"),
        ({"shards": 3}, "--shards is for --aggregator median or trimmed_mean, not mean: leave it out"),
        ({"name": "median"}, "--aggregator median needs --shards: each takes 4 bytes a weight in memory"),
        ({"name": "median", "shards": 0}, "--shards should be a whole number from 1 to 10000, not 0"),
        ({"name": "median", "shards": True}, "--shards should be a whole number from 1 to 10000, not True"),
        ({"name": "median", "shards": 9, "trim": 0.1}, "--trim is for --aggregator trimmed_mean, not median: leave"),
        ({"name": "trimmed_mean", "shards": 9, "trim": 0.5}, "--trim should be at least 0 and below 0.5, not 0.5"),
        ({"name": "trimmed_mean", "shards": 9, "trim": "a"}, "--trim should be at least 0 and below 0.5, not 'a'"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_said(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Aggregation(**fields)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)
