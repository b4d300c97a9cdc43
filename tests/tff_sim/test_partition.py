"""Dealing data to clients: laws that hold for every number of examples and clients."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import InputError
from device_runtime.examples import Examples
from tff_sim import datasets
from tff_sim.datasets import Dataset, Owners
from tff_sim.label_counts import gini, summarise
from tff_sim.partition import SCHEMES, Partition, Scheme, deal, partition, scheme
from tff_sim.partition.schemes import Dirichlet, Iid, LogNormal, Natural, PowerLaw, Shards, scheme_from_json

KNOWN = "known partitions: iid, shards, dirichlet, log-normal, power-law, natural"

schemes = st.one_of(
    st.just(Iid()),
    st.builds(Shards, st.integers(1, 4)),
    st.builds(Dirichlet, st.sampled_from([1e-3, 0.1, 0.5, 1.0, 100.0])),
    st.builds(LogNormal, st.sampled_from([0.0, 0.5, 2.0, 50.0])),
    st.builds(PowerLaw, st.sampled_from([0.0, 1.0, 3.0, 200.0])),
)


def _examples(count: int, classes: int = 10) -> Examples:
    """Labels go round; the feature is the example's number, so that it can be found again."""
    rng = np.random.default_rng(count)
    labels = rng.permutation(np.arange(count) % classes).astype(np.int32)
    return Examples(np.arange(count, dtype=np.float32).reshape(-1, 1), labels)


def _data(count: int, classes: int = 10, owners: Owners | None = None) -> Dataset:
    return Dataset("numbers", _examples(count, classes), _examples(3), owners)


def _dealt(clients: dict[str, Examples]) -> npt.NDArray[np.float32]:
    return np.concatenate([hand.x[:, 0] for hand in clients.values()])


def _label_sets(data: Dataset, dealt: Partition) -> list[set[int]]:
    return [set(data.train.y[dealt.hand(number)].tolist()) for number in range(len(dealt))]


@given(schemes, st.integers(1, 40), st.integers(0, 200), st.integers(0, 2**53 - 1))
def test_every_example_is_dealt_exactly_once(chosen: Scheme, clients: int, more: int, seed: int) -> None:
    data = _data(chosen.pieces(clients) + more)
    dealt = deal(data, chosen, clients, seed)
    assert len(dealt) == len(dealt.names) == clients
    assert dealt.sizes.min() >= 1
    assert sorted(dealt.indices.tolist()) == list(range(len(data.train)))
    assert dealt.indices.dtype == dealt.offsets.dtype == np.int64


@given(schemes, st.integers(1, 30), st.integers(0, 2**53 - 1))
def test_the_seed_alone_decides(chosen: Scheme, clients: int, seed: int) -> None:
    data = _data(500)
    first, again = deal(data, chosen, clients, seed), deal(data, chosen, clients, seed)
    np.testing.assert_array_equal(first.indices, again.indices)
    np.testing.assert_array_equal(first.offsets, again.offsets)


@pytest.mark.parametrize("chosen", [kind() for kind in SCHEMES.values() if kind is not Natural], ids=str)
def test_another_seed_deals_other_hands(chosen: Scheme) -> None:
    first, other = (deal(_data(200), chosen, 10, seed) for seed in (3, 4))
    assert (first.indices != other.indices).any()


@given(st.sampled_from([name for name in SCHEMES if name != "natural"]), st.integers(1, 20), st.integers(0, 99))
def test_the_shorter_way_deals_the_same_hands(name: str, clients: int, seed: int) -> None:
    data = _data(100)
    dealt, shorter = deal(data, scheme(name), clients, seed), partition(data.train, name, clients, seed)
    assert list(dealt.names) == list(shorter)
    for number, hand in enumerate(shorter.values()):
        np.testing.assert_array_equal(hand.x[:, 0], dealt.hand(number))
        np.testing.assert_array_equal(hand.y, data.train.y[dealt.hand(number)])


@pytest.mark.parametrize(
    ("name", "seed", "digest"),
    [
        ("iid", 0, "4784c2b006bd3e56"),
        ("iid", 7, "41ed8a8d808111d8"),
        ("shards", 0, "45e3eec1ec4970d9"),
        ("shards", 7, "196bcd2cab557d2f"),
    ],
)
def test_hands_of_earlier_runs_come_again(name: str, seed: int, digest: str) -> None:
    dealt = partition(datasets.load("digits").train, name, 20, seed)
    found = hashlib.sha256("".join(client + hand.identity for client, hand in dealt.items()).encode()).hexdigest()
    assert found[:16] == digest


@given(st.integers(1, 300), st.integers(1, 50), st.integers(0, 1000))
def test_iid_sizes_differ_by_one_at_the_most(count: int, clients: int, seed: int) -> None:
    hands = Iid().deal(np.zeros(count, np.int32), clients, np.random.default_rng(seed))
    sizes = [len(hand) for hand in hands]
    assert max(sizes) - min(sizes) <= 1


def test_iid_clients_see_a_mixture() -> None:
    data = _data(1000)
    assert min(map(len, _label_sets(data, deal(data, Iid(), 10, 0)))) >= 9


def test_shards_gives_most_clients_two_labels() -> None:
    # 60 examples a shard, 120 a label: each shard holds one label, as in the paper.
    data = _data(1200)
    dealt = deal(data, Shards(), 10, 0)
    labels = [len(found) for found in _label_sets(data, dealt)]
    assert max(labels) == 2
    assert labels.count(2) >= 5
    assert dealt.sizes.tolist() == [120] * 10


@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 120), st.integers(0, 1000))
def test_each_client_gets_exactly_its_shards(clients: int, each: int, more: int, seed: int) -> None:
    chosen = Shards(each)
    labels = np.sort(_examples(each * clients + more).y)
    hands = chosen.deal(labels, clients, np.random.default_rng(seed))
    # The labels are sorted already, so that a shard is a run of consecutive numbers.
    pieces = np.array_split(np.arange(len(labels)), each * clients)
    whole = {(int(piece[0]), int(piece[-1])) for piece in pieces}
    for hand in hands:
        starts = {piece for piece in whole if piece[0] in hand and piece[1] in hand}
        assert len(starts) == each
        assert len(hand) == sum(last - first + 1 for first, last in starts)


def test_dirichlet_goes_from_one_label_a_client_to_a_mixture() -> None:
    data = _data(10_000)
    distances = [
        deal(data, Dirichlet(alpha), 20, 0).summary(data.train.y).label_distance for alpha in (0.01, 0.3, 3.0, 1e4)
    ]
    assert None not in distances
    first, second, third, last = (float(distance or 0) for distance in distances)
    assert first > 0.75 > second > third > last
    assert last < 0.05


def test_the_smallest_alpha_gives_each_label_to_one_client() -> None:
    data = _data(10_000)
    hands = deal(data, Dirichlet(1e-6), 20, 0)
    for label in range(10):
        sizes = [int((data.train.y[hands.hand(number)] == label).sum()) for number in range(20)]
        assert sum(sizes) - max(sizes) <= 20  # but for the examples of those who would have got none


def test_the_largest_alpha_gives_everybody_the_same_mixture() -> None:
    for alpha in (1e12, 1e308):
        hands = Dirichlet(alpha).deal(np.repeat(np.arange(10), 200), 20, np.random.default_rng(0))
        assert [np.bincount(hand // 200).tolist() for hand in hands] == [[10] * 10] * 20


def test_dirichlet_s_shares_have_the_distribution_s_mean_and_variance() -> None:
    # One label, 2 clients: the first one's share is Beta(α, α), of mean 1/2 and variance 1/(4·(2α + 1)).
    labels = np.zeros(2000, np.int32)
    shares = [len(Dirichlet(0.5).deal(labels, 2, np.random.default_rng(seed))[0]) / len(labels) for seed in range(2000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.var(shares) == pytest.approx(1 / 8, rel=0.1)


def test_log_normal_sizes_have_the_deviation_that_is_asked_for() -> None:
    sizes = deal(_data(400_000), LogNormal(0.7), 2000, 0).sizes
    assert np.std(np.log(sizes)) == pytest.approx(0.7, rel=0.05)
    assert np.ptp(deal(_data(1000), LogNormal(0.0), 10, 0).sizes) == 0


def test_power_law_sizes_fall_with_their_rank() -> None:
    sizes = np.sort(deal(_data(100_000), PowerLaw(1.5), 50, 0).sizes)[::-1]
    slope = np.polyfit(np.log(np.arange(1, 51)), np.log(sizes), 1)[0]
    assert slope == pytest.approx(-1.5, abs=0.05)


def test_uneven_sizes_leave_the_labels_mixed() -> None:
    for chosen in (LogNormal(1.0), PowerLaw(0.8)):
        data = _data(20_000)
        summary = deal(data, chosen, 20, 0).summary(data.train.y)
        assert summary.gini > 0.3
        assert summary.label_distance is not None
        assert summary.label_distance < 0.1


# Natural clients


def _owned() -> Dataset:
    return _data(12, owners=Owners(("a", "b", "c"), np.array([2, 0, 1, 2, 0, 2, 2, 2, 2, 1, 2, 2], np.int32)))


def test_natural_clients_have_their_own() -> None:
    dealt = deal(_owned(), Natural(), None, 0)
    assert list(dealt.names) == ["a", "b", "c"]
    assert [dealt.hand(number).tolist() for number in range(3)] == [[1, 4], [2, 9], [0, 3, 5, 6, 7, 8, 10, 11]]


def test_some_of_the_natural_clients_take_part_with_all_that_they_have() -> None:
    everybody = deal(_owned(), Natural(), None, 0)
    found = set()
    for seed in range(30):
        dealt = deal(_owned(), Natural(), 2, seed)
        assert len(dealt) == 2
        for number, name in enumerate(dealt.names):
            position = everybody.names.find(name)
            assert position is not None
            assert dealt.hand(number).tolist() == everybody.hand(position).tolist()
        found.add(tuple(dealt.names))
    assert found == {("a", "b"), ("a", "c"), ("b", "c")}


def test_without_a_number_there_are_as_many_clients_as_natural_ones_or_100() -> None:
    assert len(deal(_owned(), Iid(), None, 0)) == 3
    assert len(deal(_data(200), Iid(), None, 0)) == 100


@pytest.mark.parametrize("clients", [0, 4, -1])
def test_more_natural_clients_than_there_are_are_refused(clients: int) -> None:
    assert _refusal(_owned(), Natural(), clients) == (
        f"data set 'numbers' has 3 natural clients, not {clients}: change --clients"
    )


# Errors


def _refusal(data: Dataset, chosen: Scheme, clients: int | None) -> str:
    with pytest.raises(InputError) as caught:
        deal(data, chosen, clients, 0)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_data_without_natural_clients_says_so() -> None:
    assert _refusal(_data(10), Natural(), None) == (
        "data set 'numbers' has no natural clients: choose another --partition than 'natural'"
    )
    with pytest.raises(InputError) as caught:
        partition(_examples(10), "natural", 2, 0)
    assert str(caught.value) == (
        "partition 'natural' is of a data set with natural clients: deal that with tff_sim.partition.deal"
    )


@pytest.mark.parametrize("name", ["shards", "dirichlet"])
def test_sequences_have_no_one_label_to_go_by(name: str) -> None:
    text = Examples(np.zeros((9, 80), np.int32), np.zeros((9, 80), np.int32))
    assert _refusal(Dataset("text", text, text), scheme(name), 3) == (
        f"partition {name!r} goes by one label an example, and here an example has int32 (80,):"
        " choose another --partition"
    )


def test_an_unknown_partition_is_named_and_the_known_ones_listed() -> None:
    with pytest.raises(InputError) as caught:
        partition(_examples(10), "by-hand", 2, 0)
    assert str(caught.value) == f"unknown partition 'by-hand'; {KNOWN}"


@pytest.mark.parametrize(("name", "clients"), [("iid", 0), ("iid", -1), ("iid", 11), ("shards", 6), ("shards", 0)])
def test_too_few_or_too_many_clients_are_refused(name: str, clients: int) -> None:
    with pytest.raises(InputError) as caught:
        partition(_examples(10), name, clients, 0)
    assert str(caught.value) == f"can't deal 10 examples to {clients} clients by {name!r}: change --clients"
    assert _refusal(_data(10), scheme(name), clients) == str(caught.value)


@pytest.mark.parametrize("labels", [9, 11])
def test_features_without_labels_are_not_left_out(labels: int) -> None:
    with pytest.raises(InputError) as caught:
        partition(Examples(np.zeros((10, 2), np.float32), np.zeros(labels, np.int32)), "iid", 2, seed=0)
    assert str(caught.value) == f"can't deal 10 rows of x and {labels} of y; expected as many of both"


def test_as_many_pieces_as_examples_still_go() -> None:
    assert [len(hand) for hand in partition(_examples(10), "shards", 5, 0).values()] == [2] * 5
    for name in ("dirichlet", "log-normal", "power-law"):
        assert [len(hand) for hand in partition(_examples(10), name, 10, 0).values()] == [1] * 10


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("shards", {"shards_per_client": 0}, "--shards-per-client should be at least 1, not 0"),
        ("dirichlet", {"alpha": 0.0}, "--alpha should be a finite number of at least 1e-06, not 0.0"),
        ("dirichlet", {"alpha": 1e-9}, "--alpha should be a finite number of at least 1e-06, not 1e-09"),
        ("dirichlet", {"alpha": float("nan")}, "--alpha should be a finite number of at least 1e-06, not nan"),
        ("log-normal", {"sigma": -1.0}, "--sigma should be a finite number of at least 0, not -1.0"),
        ("power-law", {"exponent": float("inf")}, "--exponent should be a finite number of at least 0, not inf"),
        ("iid", {"alpha": 1.0}, "partition 'iid' has no --alpha: leave it out"),
        ("dirichlet", {"shards_per_client": 2}, "partition 'dirichlet' has no --shards-per-client: leave it out"),
    ],
)
def test_parameters_out_of_range_are_named(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        scheme(name, **parameters)
    assert str(caught.value) == message


@given(schemes)
def test_a_scheme_goes_through_json(chosen: Scheme) -> None:
    assert scheme_from_json(chosen.to_json(), "here") == chosen


@pytest.mark.parametrize("value", [None, {"name": "by-hand"}, {"name": "iid", "alpha": 1}, {"name": "shards"}, []])
def test_json_that_is_no_scheme_is_refused(value: Any) -> None:
    with pytest.raises(InputError) as caught:
        scheme_from_json(value, "here")
    assert str(caught.value) == f"here: expected a partition's name and parameters, not {value!s:.60}"


# What is said of them


def test_a_summary_counts_what_was_made() -> None:
    counts = np.array([[3, 1, 0], [0, 0, 4], [1, 0, 1]], np.int32)
    summary = summarise(np.array([4, 4, 2]), counts)
    assert (summary.clients, summary.examples) == (3, 10)
    assert (summary.smallest, summary.median, summary.largest) == (2, 4, 4)
    assert summary.labels == (4, 1, 5)
    assert summary.labels_per_client == (1, 2, 2)
    # |¾ − 0.4| + |¼ − 0.1| + |0 − 0.5| and so on, halved, and their mean.
    assert summary.label_distance == pytest.approx((0.5 + 0.5 + 0.1) / 3)
    assert str(summary).splitlines() == [
        "clients: 3",
        "examples: 10",
        "a client's examples: 2 to 4, median 4",
        "imbalance of sizes (Gini): 0.133",
        "labels: 3",
        "a client's labels: 1 to 2, median 2",
        "labels' distance to all (mean total variation): 0.367",
    ]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30))
def test_gini_is_half_the_mean_difference_over_the_mean(sizes: list[int]) -> None:
    values = np.array(sizes)
    mean = values.mean()
    expected = np.abs(values[:, None] - values).mean() / (2 * mean) if mean else 0.0
    assert gini(values) == pytest.approx(expected, abs=1e-12)


@given(schemes, st.integers(1, 20), st.integers(1, 12))
def test_counts_of_labels_are_those_of_each_hand(chosen: Scheme, clients: int, classes: int) -> None:
    data = _data(100, classes)
    dealt = deal(data, chosen, clients, 0)
    counts = dealt.label_counts(data.train.y)
    assert counts is not None
    for number in range(clients):
        expected = np.bincount(data.train.y[dealt.hand(number)], minlength=classes)
        assert counts[number].tolist() == expected.tolist()


def test_labels_that_are_no_classes_are_not_counted() -> None:
    x = np.zeros((9, 1), np.float32)
    for labels in (np.zeros(9, np.float32), np.full(9, -1, np.int32), np.full(9, 5000, np.int32)):
        data = Dataset("numbers", Examples(x, labels), Examples(x, labels))
        summary = deal(data, Iid(), 3, 0).summary(labels)
        assert (summary.labels, summary.labels_per_client, summary.label_distance) == (None, None, None)
        assert len(summary.rows()) == 4


def test_a_scheme_prints_its_parameters() -> None:
    assert [str(chosen) for chosen in (Iid(), Shards(3), Dirichlet(0.25))] == [
        "iid",
        "shards (shards_per_client 3)",
        "dirichlet (alpha 0.25)",
    ]


def test_a_script_may_name_the_scheme() -> None:
    data = _data(40)
    named, made = deal(data, "shards", 4, 1), deal(data, scheme("shards"), 4, 1)
    assert named.scheme == made.scheme == Shards()
    np.testing.assert_array_equal(named.indices, made.indices)
    with pytest.raises(InputError, match=rf"^unknown partition 'fair'; {KNOWN}$"):
        deal(data, "fair", 4, 1)


def test_a_seed_below_0_is_refused() -> None:
    owners = Owners(("a", "b"), np.array([0, 1] * 20, np.int32))
    for dealing in (
        lambda: partition(_examples(40), "iid", 4, -1),
        lambda: deal(_data(40), "iid", 4, -1),
        lambda: deal(_data(40, owners=owners), "natural", None, -1),
    ):
        with pytest.raises(InputError, match=r"^seed should be a whole number of at least 0, not -1$"):
            dealing()
    with pytest.raises(InputError, match=r"^seed should be a whole number of at least 0, not 1\.5$"):
        deal(_data(40), "iid", 4, 1.5)  # type: ignore[arg-type]
