"""Dealing data to clients: laws that hold for every number of examples and clients."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import InputError
from device_runtime.examples import Examples
from tff_sim.partition import PARTITIONS, SHARDS_A_CLIENT, client_names, iid, partition, shards


def _examples(count: int, classes: int = 10) -> Examples:
    """Labels go round; the feature is the example's number, so that it can be found again."""
    rng = np.random.default_rng(count)
    labels = rng.permutation(np.arange(count) % classes).astype(np.int32)
    return Examples(np.arange(count, dtype=np.float32).reshape(-1, 1), labels)


def _dealt(clients: dict[str, Examples]) -> npt.NDArray[np.float32]:
    return np.concatenate([hand.x[:, 0] for hand in clients.values()])


@given(st.sampled_from(sorted(PARTITIONS)), st.integers(1, 40), st.integers(0, 200), st.integers(0, 2**53 - 1))
def test_every_example_is_dealt_exactly_once(name: str, clients: int, more: int, seed: int) -> None:
    examples = _examples(clients * SHARDS_A_CLIENT + more)
    dealt = partition(examples, name, clients, seed)
    assert len(dealt) == clients
    assert all(len(hand) > 0 for hand in dealt.values())
    np.testing.assert_array_equal(np.sort(_dealt(dealt)), examples.x[:, 0])
    for hand in dealt.values():
        np.testing.assert_array_equal(hand.y, examples.y[hand.x[:, 0].astype(int)])


@given(st.integers(1, 300), st.integers(1, 50), st.integers(0, 1000))
def test_iid_sizes_differ_by_one_at_the_most(count: int, clients: int, seed: int) -> None:
    hands = iid(np.zeros(count, np.int32), clients, np.random.default_rng(seed))
    sizes = [len(hand) for hand in hands]
    assert max(sizes) - min(sizes) <= 1


def test_iid_clients_see_a_mixture() -> None:
    dealt = partition(_examples(1000), "iid", 10, 0)
    assert min(len(set(hand.y.tolist())) for hand in dealt.values()) >= 9


def test_shards_gives_most_clients_two_labels() -> None:
    # 60 examples a shard, 120 a label: each shard holds one label, as in the paper.
    dealt = partition(_examples(1200), "shards", 10, 0)
    labels = [len(set(hand.y.tolist())) for hand in dealt.values()]
    assert max(labels) == 2
    assert labels.count(2) >= 5
    assert all(len(hand) == 120 for hand in dealt.values())


@given(st.integers(1, 30), st.integers(0, 120), st.integers(0, 1000))
def test_each_client_gets_exactly_two_shards(clients: int, more: int, seed: int) -> None:
    labels = np.sort(_examples(SHARDS_A_CLIENT * clients + more).y)
    hands = shards(labels, clients, np.random.default_rng(seed))
    # The labels are sorted already, so that a shard is a run of consecutive numbers.
    pieces = np.array_split(np.arange(len(labels)), SHARDS_A_CLIENT * clients)
    whole = {(int(piece[0]), int(piece[-1])) for piece in pieces}
    for hand in hands:
        starts = {piece for piece in whole if piece[0] in hand and piece[1] in hand}
        assert len(starts) == SHARDS_A_CLIENT
        assert len(hand) == sum(last - first + 1 for first, last in starts)


@pytest.mark.parametrize("name", sorted(PARTITIONS))
def test_the_seed_alone_decides(name: str) -> None:
    examples = _examples(200)
    first, again, other = (_dealt(partition(examples, name, 10, seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_names_are_numbered_with_one_width() -> None:
    hand = _examples(1)
    assert list(client_names([hand] * 3)) == ["client-000", "client-001", "client-002"]
    many = list(client_names([hand] * 1001))
    assert (many[0], many[-1]) == ("client-0000", "client-1000")


def test_an_unknown_partition_is_named_and_the_known_ones_listed() -> None:
    with pytest.raises(InputError) as caught:
        partition(_examples(10), "dirichlet", 2, 0)
    assert str(caught.value) == "unknown partition 'dirichlet'; known partitions: iid, shards"


@pytest.mark.parametrize(("name", "clients"), [("iid", 0), ("iid", -1), ("iid", 11), ("shards", 6), ("shards", 0)])
def test_too_few_or_too_many_clients_are_refused(name: str, clients: int) -> None:
    with pytest.raises(InputError) as caught:
        partition(_examples(10), name, clients, 0)
    assert str(caught.value) == f"can't deal 10 examples to {clients} clients by {name!r}: change --clients"


def test_as_many_pieces_as_examples_still_go() -> None:
    assert [len(hand) for hand in partition(_examples(10), "shards", 5, 0).values()] == [2] * 5
