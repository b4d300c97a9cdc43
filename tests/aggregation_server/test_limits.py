"""Rate limits: never more than the bucket holds, whatever other keys do, and told waits that are true."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregation_server.access.limits import RateLimits
from device_runtime.errors import InputError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": 0}, "rate limit: rate should be above 0 requests a second, not 0"),
        ({"rate": math.inf}, "rate limit: rate should be above 0 requests a second, not inf"),
        ({"burst": 0.5}, "rate limit: burst should be at least 1, not 0.5"),
        ({"burst": math.nan}, "rate limit: burst should be at least 1, not nan"),
        ({"keys": 0}, "rate limit: keys should be at least 1, not 0"),
    ],
)
def test_a_figure_out_of_range_is_named(fields: dict[str, float], message: str) -> None:
    with pytest.raises(InputError) as caught:
        RateLimits(**{"rate": 1, "burst": 1, **fields})  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_a_burst_is_taken_and_then_the_rate() -> None:
    limits = RateLimits(rate=2, burst=3)
    assert [limits.take("phone", 10.0) for _ in range(5)] == [0, 0, 0, 0.5, 0.5]
    assert [limits.take("phone", at) for at in (10.25, 10.5, 10.5, 11.0)] == [0.25, 0, 0.5, 0]
    assert limits.take("tablet", 11.0) == 0
    assert [limits.take("phone", 100.0) for _ in range(4)] == [0, 0, 0, 0.5]  # no more than a bucket full


# Rates, bursts and times are binary fractions, so that nothing is rounded.
TIMES = st.integers(0, 1 << 12).map(lambda ticks: ticks / 64)
REQUESTS = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 96)), max_size=150)


@settings(max_examples=200)
@given(REQUESTS, st.sampled_from([0.25, 1.0, 4.0]), st.sampled_from([1.0, 1.5, 4.0]), st.integers(1, 6))
def test_in_any_time_no_more_is_taken_than_burst_and_rate_allow(
    requests: list[tuple[str, int]], rate: float, burst: float, keys: int
) -> None:
    limits, now, taken = RateLimits(rate, burst, keys), 0.0, defaultdict(list)
    for key, ticks in requests:
        now += ticks / 64
        wait = limits.take(key, now)
        assert 0 <= wait <= 1 / rate
        assert len(limits) <= keys
        if wait == 0:
            taken[key].append(now)
    for times in taken.values():
        for first, begin in enumerate(times):
            for count, end in enumerate(times[first:], 1):
                assert count <= burst + rate * (end - begin)


@given(REQUESTS, st.sampled_from([0.25, 1.0, 4.0]), st.sampled_from([1.0, 1.5, 4.0]), st.integers(1, 6))
def test_the_wait_that_is_told_is_enough_and_not_too_long(
    requests: list[tuple[str, int]], rate: float, burst: float, keys: int
) -> None:
    limits, now = RateLimits(rate, burst, keys), 0.0
    for key, ticks in requests:
        now += ticks / 64
        wait = limits.take(key, now)
        if wait > 0:
            assert limits.take(key, now + wait - 1 / 1024) > 0
            now += wait
            assert limits.take(key, now) == 0


def test_keys_whose_buckets_are_full_are_forgotten_at_no_one_s_cost() -> None:
    limits = RateLimits(rate=1, burst=5, keys=1000)
    for number in range(10_000):  # each is full again when the next comes
        assert limits.take(f"phone-{number}", 2.0 * number) == 0
    assert len(limits) <= 2
    assert [limits.take("new", 20_000.0) for _ in range(6)] == [0, 0, 0, 0, 0, 1]


def test_a_limit_is_not_escaped_by_having_the_key_forgotten() -> None:
    limits = RateLimits(rate=1, burst=5, keys=10)
    assert [limits.take("attacker", 0.0) for _ in range(5)] == [0] * 5
    for number in range(10):
        limits.take(f"helper-{number}", 0.0)
    assert len(limits) == 10
    assert limits.take("attacker", 0.0) == 1


def test_a_new_key_waits_for_one_request_at_most_while_more_keys_than_there_is_room_for_are_used() -> None:
    limits, waits = RateLimits(rate=1, burst=5, keys=10), []
    for second in range(100):
        for number in range(50):
            limits.take(f"attacker-{number}", float(second))
        waits.append(limits.take(f"honest-{second}", second + 0.5))
    assert max(waits) <= 1


def test_asking_how_long_it_takes_takes_nothing() -> None:
    limits = RateLimits(rate=1, burst=2)
    for _ in range(10):
        assert limits.wait("a", 0.0) == 0
    assert len(limits) == 0
    assert [limits.take("a", 0.0), limits.take("a", 0.0)] == [0, 0]
    assert limits.wait("a", 0.5) == limits.take("a", 0.5) == 0.5
