"""The clients' learning rate over the rounds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import InputError
from device_runtime.work import ClientWork
from tff_sim.algorithms.schedules import CONSTANT, SCHEDULES, Schedule, work_of


def _factors(schedule: Schedule, rounds: int) -> list[float]:
    return [schedule.factor(number) for number in range(1, rounds + 1)]


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        (CONSTANT, [1, 1, 1, 1, 1]),
        (Schedule(warmup=3), [1 / 4, 2 / 4, 3 / 4, 1, 1]),
        (Schedule("exponential"), [1, 0.99, 0.99**2, 0.99**3, 0.99**4]),
        (Schedule("exponential", decay=0.5, decay_rounds=2), [1, 0.5**0.5, 0.5, 0.5**1.5, 0.25]),
        (Schedule("step", decay=0.5, decay_rounds=2), [1, 1, 0.5, 0.5, 0.25]),
        (Schedule("step", decay=0.5, decay_rounds=1, warmup=1), [1 / 2, 1, 0.5, 0.25, 0.125]),
        (Schedule("cosine", rounds=5), [0.01 + 0.99 * x for x in (1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0)]),
        (Schedule("cosine", final=0.5, rounds=5, warmup=2), [1 / 3, 2 / 3, 1, 0.75, 0.5]),
        (Schedule("cosine", final=0.5, rounds=3), [1, 0.75, 0.5, 0.5, 0.5]),  # beyond its end
        (Schedule("cosine", rounds=2, warmup=1), [0.5, 1, 1, 1, 1]),
    ],
    ids=str,
)  # fmt: skip
def test_factors(schedule: Schedule, want: list[float]) -> None:
    assert _factors(schedule, 5) == pytest.approx(want)


@st.composite
def _schedules(draw: st.DrawFn) -> Schedule:
    name = draw(st.sampled_from(list(SCHEDULES)))
    share = st.floats(1e-6, 1)
    values: dict[str, Any] = {
        "decay": draw(share),
        "final": draw(share),
        "decay_rounds": draw(st.integers(1, 1000)),
    }
    warmup = draw(st.integers(0, 50))
    rounds = draw(st.integers(warmup + 1, 10_000)) if name == "cosine" else None
    return Schedule(name, rounds=rounds, warmup=warmup, **{key: values[key] for key in SCHEDULES[name]})


@given(_schedules(), st.lists(st.integers(1, 100_000), min_size=2, max_size=20))
def test_a_rate_rises_in_the_warmup_and_never_after(schedule: Schedule, numbers: list[int]) -> None:
    numbers = sorted({*numbers, 1, schedule.warmup + 1})
    factors = [schedule.factor(number) for number in numbers]
    assert all(0 < factor <= 1 for factor in factors)
    assert schedule.factor(schedule.warmup + 1) == 1
    for number, one, two in zip(numbers[1:], factors, factors[1:], strict=False):
        if number <= schedule.warmup + 1:
            assert one < two
        else:
            assert one >= two - 1e-12
    if schedule.name == "cosine" and schedule.rounds is not None and schedule.rounds > schedule.warmup + 1:
        assert schedule.factor(schedule.rounds) == pytest.approx(schedule.final)


def test_the_work_of_a_round_has_its_learning_rate_and_nothing_else_is_changed() -> None:
    work = ClientWork(epochs=3, learning_rate=0.2, seed=7)
    of = work_of(work, Schedule("step", decay=0.5, decay_rounds=10))
    assert of(10) == work
    assert of(11) == ClientWork(epochs=3, learning_rate=0.1, seed=7)
    assert work_of(work, CONSTANT)(1000) == work


def test_a_learning_rate_never_becomes_zero_in_float32() -> None:
    of = work_of(ClientWork(learning_rate=0.1), Schedule("exponential", decay=0.1))
    rate = of(100_000).learning_rate
    assert rate > 0
    assert np.float32(rate) > 0


def test_a_summary_has_the_values_that_count() -> None:
    assert Schedule("step", decay=0.5).to_json() == {
        "name": "step", "decay": 0.5, "decay_rounds": 100, "final": None, "rounds": None, "warmup": 0,
    }  # fmt: skip
    assert CONSTANT.to_json()["decay"] is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "linear"}, "--lr-schedule should be one of constant, exponential, step, cosine, not 'linear'"),
        (
            {"decay": 0.9},
            "--lr-decay does not go with --lr-schedule constant: leave it out, or choose exponential or step",
        ),
        (
            {"name": "cosine", "rounds": 9, "decay_rounds": 3},
            "--lr-decay-rounds does not go with --lr-schedule cosine: leave it out, or choose exponential or step",
        ),
        (
            {"name": "exponential", "final": 0.1},
            "--lr-final does not go with --lr-schedule exponential: leave it out, or choose cosine",
        ),
        ({"name": "step", "decay": 0.0}, "--lr-decay should be above 0 and at most 1, not 0.0"),
        ({"name": "step", "decay": math.nan}, "--lr-decay should be above 0 and at most 1, not nan"),
        ({"name": "cosine", "rounds": 9, "final": 1.5}, "--lr-final should be above 0 and at most 1, not 1.5"),
        ({"name": "step", "decay_rounds": 0}, "--lr-decay-rounds should be a whole number from 1 to 2**31 - 1, not 0"),
        (
            {"name": "step", "decay_rounds": 2.5},
            "--lr-decay-rounds should be a whole number from 1 to 2**31 - 1, not 2.5",
        ),
        ({"warmup": -1}, "--lr-warmup should be a whole number from 0 to 2**31 - 1, not -1"),
        ({"warmup": True}, "--lr-warmup should be a whole number from 0 to 2**31 - 1, not True"),
        ({"name": "cosine", "rounds": 0}, "--lr-rounds should be a whole number from 1 to 2**31 - 1, not 0"),
        ({"name": "cosine"}, "--lr-schedule cosine needs --lr-rounds, the number of rounds until its end"),
        ({"name": "cosine", "rounds": 5, "warmup": 5}, "--lr-warmup should be below --lr-rounds, 5, not 5"),
        (
            {"name": "step", "rounds": 5},
            "--lr-rounds does not go with --lr-schedule step: leave it out, or choose cosine",
        ),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Schedule(**values)
    assert str(caught.value) == message


@pytest.mark.parametrize("schedule", [CONSTANT, Schedule(warmup=2), Schedule("cosine", rounds=5)], ids=str)
@pytest.mark.parametrize("number", [0, -1])
def test_rounds_count_from_one(schedule: Schedule, number: int) -> None:
    # As before the end of a warm-up, the rate would be nothing, and the round without effect.
    with pytest.raises(InputError) as caught:
        work_of(ClientWork(), schedule)(number)
    assert str(caught.value) == f"a schedule's rounds count from 1, not {number}: range(1, rounds + 1)"
