"""The order of examples, and what a client can be asked to do."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.batching import batch_indices, epoch_order
from device_runtime.errors import InputError
from device_runtime.work import SEED_BITS, ClientWork, client_seed, step_seeds

seeds = st.integers(0, 2**SEED_BITS - 1)


@given(st.integers(1, 60), st.none() | st.integers(1, 70), seeds, st.integers(0, 1000))
def test_the_order_is_the_protocol_s(examples: int, batch_size: int | None, seed: int, epoch: int) -> None:
    # Word for word from docs/protocol.md: the simulation and every device must agree on it.
    permutation = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(examples)
    size = examples if batch_size is None else batch_size
    batches = [batch.tolist() for batch in batch_indices(examples, batch_size, seed, epoch)]
    assert batches == [permutation[start : start + size].tolist() for start in range(0, examples, size)]
    assert sorted(index for batch in batches for index in batch) == list(range(examples))
    assert all(len(batch) == min(size, examples) for batch in batches[:-1])


def test_the_order_is_the_same_for_ever() -> None:
    # A change of numpy's Philox or permutation would part the fleet from the simulation without a word.
    assert epoch_order(8, 3, 1).tolist() == [0, 7, 6, 1, 5, 3, 2, 4]
    assert epoch_order(8, 2**SEED_BITS - 1, 0).tolist() == [6, 4, 2, 7, 3, 5, 1, 0]


def test_the_last_batch_is_smaller() -> None:
    assert [len(batch) for batch in batch_indices(23, 10, 0, 0)] == [10, 10, 3]
    assert [len(batch) for batch in batch_indices(20, 10, 0, 0)] == [10, 10]
    assert [len(batch) for batch in batch_indices(3, 10, 0, 0)] == [3]
    assert [len(batch) for batch in batch_indices(23, None, 0, 0)] == [23]
    assert list(batch_indices(0, None, 0, 0)) == []


def test_epochs_and_seeds_have_their_own_order() -> None:
    orders = {tuple(epoch_order(20, seed, epoch)) for seed in (0, 1, 2**52, 2**52 + 1) for epoch in range(3)}
    assert len(orders) == 12


WRONG = [
    ("epochs", 0, "a whole number of at least 1, not 0"),
    ("epochs", 1.5, "a whole number of at least 1, not 1.5"),
    ("epochs", True, "a whole number of at least 1, not True"),
    ("batch_size", 0, "a whole number from 1 to 2**31 - 1, or none for the whole local set, not 0"),
    ("batch_size", 2**31, "a whole number from 1 to 2**31 - 1, or none for the whole local set, not 2147483648"),
    ("batch_size", "10", "a whole number from 1 to 2**31 - 1, or none for the whole local set, not '10'"),
    ("learning_rate", 0, "a finite number above 0, not 0"),
    ("learning_rate", -0.1, "a finite number above 0, not -0.1"),
    ("learning_rate", float("nan"), "a finite number above 0, not nan"),
    ("learning_rate", float("inf"), "a finite number above 0, not inf"),
    ("learning_rate", None, "a finite number above 0, not None"),
    ("learning_rate", 10**400, f"a finite number above 0, not {10**400}"),
    ("proximal", -1, "a finite number of at least 0, not -1"),
    ("proximal", float("nan"), "a finite number of at least 0, not nan"),
    ("seed", -1, "a whole number from 0 to 2**53 - 1, not -1"),
    ("seed", 2**53, "a whole number from 0 to 2**53 - 1, not 9007199254740992"),
    ("seed", 1.0, "a whole number from 0 to 2**53 - 1, not 1.0"),
    ("codec", None, "a codec's name, not None"),
    ("deadline_seconds", 0, "a number above 0, or none, not 0"),
    ("deadline_seconds", float("inf"), "a number above 0, or none, not inf"),
    ("deadline_seconds", "soon", "a number above 0, or none, not 'soon'"),
]


@pytest.mark.parametrize(("field", "value", "expected"), WRONG, ids=lambda value: str(value)[:20])
def test_work_out_of_range_names_its_field(field: str, value: Any, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        ClientWork.from_json(ClientWork().to_json() | {field: value})
    assert str(caught.value) == f"client work: {field} should be {expected}"


@pytest.mark.parametrize(
    "work",
    [ClientWork(), ClientWork(5, None, 1e-9, 0.5, 2**53 - 1, "q8", 0.25), ClientWork(batch_size=1, learning_rate=1)],
)
def test_work_goes_through_json(work: ClientWork) -> None:
    assert ClientWork.from_json(json.loads(json.dumps(work.to_json()))) == work


@pytest.mark.parametrize("value", [None, [], "work", {}, {"epochs": 1}, ClientWork().to_json() | {"more": 1}])
def test_work_of_another_form_is_refused(value: Any) -> None:
    names = "batch_size, codec, deadline_seconds, epochs, learning_rate, proximal, seed"
    with pytest.raises(InputError, match=f"^client work: expected an object with {names}$"):
        ClientWork.from_json(value)


@given(st.integers(), st.integers(0), st.text(max_size=10))
def test_a_client_seed_fits_into_the_work(seed: int, round_number: int, client: str) -> None:
    ClientWork(seed=client_seed(seed, round_number, client))


def test_a_client_seed_follows_from_seed_round_and_client_alone() -> None:
    places = [(seed, number, client) for seed in (0, 1) for number in (1, 11) for client in ("a", "1a", "b")]
    forth = {place: client_seed(*place) for place in places}
    back = {place: client_seed(*place) for place in reversed(places)}
    assert forth == back
    assert len(set(forth.values())) == len(places)
    assert max(forth.values()) > 2**50  # the seeds use their range


@given(seeds, st.integers(0, 40))
def test_step_seeds_are_a_sequence_of_the_client_s_own(seed: int, count: int) -> None:
    some, more = step_seeds(seed, count), step_seeds(seed, count + 5)
    assert some.dtype == np.int32
    assert some.shape == (count,)
    assert (more >= 0).all()
    np.testing.assert_array_equal(more[:count], some)
    assert len(set(more.tolist()) | set(step_seeds((seed + 1) % 2**SEED_BITS, count + 5).tolist())) >= 2 * count


def test_step_seeds_are_the_same_for_ever() -> None:
    assert step_seeds(3, 4).tolist() == [1460003741, 184748464, 1599722816, 1499921657]
