"""Who takes part in which round."""

from __future__ import annotations

import pytest

from device_runtime.errors import InputError
from tff_sim.plan import random_cohorts

CLIENTS = [f"client-{index:03d}" for index in range(30)]


@pytest.mark.parametrize(("fraction", "size"), [(0.0, 1), (0.01, 1), (0.1, 3), (0.5, 15), (1.0, 30)])
def test_a_cohort_is_the_fraction_and_one_client_at_least(fraction: float, size: int) -> None:
    cohort = random_cohorts(CLIENTS, fraction, 0)(1).reports
    assert len(cohort) == size == len(set(cohort))
    assert set(cohort) <= set(CLIENTS)
    assert set(cohort.values()) == {1.0}


def test_cohorts_follow_from_seed_and_round_alone() -> None:
    first, again, other = (random_cohorts(CLIENTS, 0.2, seed) for seed in (0, 0, 1))
    assert first(5) == again(5)  # in whatever order the rounds are asked for
    assert first(1) == again(1)
    assert list(first(1).reports) != list(first(2).reports)
    assert list(first(1).reports) != list(other(1).reports)


def test_in_the_long_run_every_client_takes_part() -> None:
    cohort = random_cohorts(CLIENTS, 0.1, 0)
    assert {name for number in range(1, 200) for name in cohort(number).reports} == set(CLIENTS)


@pytest.mark.parametrize("fraction", [-0.1, 1.01, 5, float("nan")])
def test_a_fraction_is_a_share(fraction: float) -> None:
    with pytest.raises(InputError) as caught:
        random_cohorts(CLIENTS, fraction, 0)
    assert str(caught.value) == f"a cohort's fraction of the clients should be from 0 to 1, not {fraction}"


def test_there_is_no_cohort_of_nobody() -> None:
    with pytest.raises(InputError) as caught:
        random_cohorts([], 0.5, 0)
    assert str(caught.value) == "no clients to draw cohorts from: name at least one"
