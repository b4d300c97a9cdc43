"""The world: neutral it is the paper's, each trouble has the rate it is given, and all follows from seed and round."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import InputError
from tff_sim.federated_data import DataSpec, make_population
from tff_sim.plan import random_cohorts
from tff_sim.population import Growth
from tff_sim.world import FAULTS, Availability, ClientTraits, Faults, Stragglers, World, world_planner


def _population(count: int, classes: int = 10, size: int = 100) -> ClientTraits:
    names = [f"client-{index}" for index in range(count)]
    return ClientTraits(names, lambda _, numbers: np.full(len(numbers), size), np.arange(count) % classes, classes)


WORLDS = st.builds(
    World,
    over_selection=st.floats(1, 3),
    drop_out=st.floats(0, 1),
    availability=st.builds(Availability, share=st.floats(0.01, 1), concentration=st.floats(0, 5)),
    stragglers=st.builds(Stragglers, deadline_seconds=st.none() | st.floats(0.1, 5)),
    faults=st.builds(
        Faults, corrupt=st.floats(0, 1), malicious=st.floats(0, 1), malicious_kind=st.sampled_from(FAULTS)
    ),
)


@given(world=WORLDS, count=st.integers(1, 60), fraction=st.floats(0, 1), seed=st.integers(0, 2**53 - 1))
def test_everybody_is_accounted_for_in_any_world(world: World, count: int, fraction: float, seed: int) -> None:
    population = _population(count)
    plan = world_planner(world, population, fraction, 1, seed)
    again = world_planner(world, population, fraction, 1, seed)
    later, first = plan(7), plan(1)
    repeated = again(1), again(7)  # in whatever order the rounds are asked for
    assert [list(p.reports) for p in repeated] == [list(first.reports), list(later.reports)]
    assert np.array_equal(list(repeated[0].reports.values()), list(first.reports.values()), equal_nan=True)
    goal = max(round(fraction * count), 1)
    for planned in (first, later):
        counts = planned.counts
        assert set(planned.reports) <= set(population.names)
        lost = counts["dropped_out"] + counts["late"] + counts["surplus"]
        assert counts["selected"] == len(planned.reports) + lost
        assert counts["selected"] <= counts["available"] <= count
        assert len(planned.reports) <= goal
        assert counts["surplus"] == 0 or len(planned.reports) == goal
        assert counts["corrupt"] <= len(planned.reports)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 1.0])
def test_the_world_s_cohorts_are_the_paper_s_where_nothing_happens(fraction: float) -> None:
    population = _population(50)
    plan, paper = world_planner(World(), population, fraction, 1, 5), random_cohorts(population.names, fraction, 5)
    for number in range(1, 20):
        assert dict(plan(number).reports) == dict(paper(number).reports)


def test_who_is_selected_does_not_depend_on_the_other_troubles() -> None:
    population = _population(100)
    calm = world_planner(World(drop_out=0.3), population, 0.2, 1, 0)
    harmful = world_planner(World(drop_out=0.3, faults=Faults(malicious=0.5)), population, 0.2, 1, 0)
    everybody = random_cohorts(population.names, 0.2, 0)
    for number in range(1, 10):
        assert list(calm(number).reports) == list(harmful(number).reports)
        assert set(calm(number).reports) < set(everybody(number).reports)


def test_drop_outs_and_corrupt_reports_have_their_rates() -> None:
    plan = world_planner(World(drop_out=0.2, faults=Faults(corrupt=0.1)), _population(200), 0.5, 1, 1)
    plans = [plan(number) for number in range(1, 101)]
    selected, dropped = sum(p.counts["selected"] for p in plans), sum(p.counts["dropped_out"] for p in plans)
    reports, corrupt = sum(len(p.reports) for p in plans), sum(p.counts["corrupt"] for p in plans)
    assert selected == 100 * 100
    assert dropped / selected == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / selected))
    assert corrupt / reports == pytest.approx(0.1, abs=4 * math.sqrt(0.1 * 0.9 / reports))
    assert sum(math.isnan(factor) for p in plans for factor in p.reports.values()) == corrupt


@pytest.mark.parametrize(("kind", "factor"), [("nan", math.nan), ("scaled", -3.5), ("sign-flipped", -1.0)])
def test_the_malicious_are_the_same_clients_in_all_rounds(kind: str, factor: float) -> None:
    world = World(faults=Faults(malicious=0.2, malicious_kind=kind, scale=-3.5))
    plan = world_planner(world, _population(100), 0.3, 1, 2)
    seen: dict[str, set[str]] = {"good": set(), "bad": set()}
    for number in range(1, 100):
        planned = plan(number)
        bad = {name for name, got in planned.reports.items() if got != 1}
        assert planned.counts["malicious"] == len(bad)
        assert all(np.array_equal(planned.reports[name], factor, equal_nan=True) for name in bad)
        seen["bad"] |= bad
        seen["good"] |= set(planned.reports) - bad
    assert len(seen["bad"]) == 20
    assert len(seen["good"]) == 80
    assert not seen["bad"] & seen["good"]


def test_availability_follows_the_hour_and_the_labels() -> None:
    """Over a day the mean is the share; at a label's hour most of its clients are there, twelve hours later fewest."""
    world = World(availability=Availability(share=0.2, concentration=2, noise_hours=0, round_minutes=60))
    population = _population(20_000, classes=4)  # their peaks: 0, 6, 12 and 18 o'clock
    plan = world_planner(world, population, 1.0, 1, 3)
    labels = dict(zip(population.names, (np.arange(len(population.names)) % 4).tolist(), strict=True))
    counted = np.zeros((24, 4))
    for hour in range(24):
        for name in plan(24 + hour).reports:
            counted[hour, labels[name]] += 1
    assert counted.sum() / (24 * 20_000) == pytest.approx(0.2, abs=0.005)
    away = (counted.argmax(axis=0) - [0, 6, 12, 18] + 12) % 24 - 12
    assert (abs(away) <= 1).all()
    chance = 0.2 * math.exp(2) / np.i0(2)
    assert counted[[0, 6, 12, 18], [0, 1, 2, 3]] / 5000 == pytest.approx([chance] * 4, abs=0.03)
    assert (counted[[12, 18, 0, 6], [0, 1, 2, 3]] / 5000 < 0.03).all()


@pytest.mark.parametrize(("share", "concentration"), [(0.3, 2), (0.6, 2), (0.95, 2), (0.3, 10), (0.3, 50), (0.99, 50)])
def test_over_a_day_the_share_is_there_though_nobody_is_more_often_than_always(
    share: float, concentration: float
) -> None:
    """With a share of 0.6 and the default concentration, the chance would be 1.9 at the peak."""
    world = World(availability=Availability(share=share, concentration=concentration))
    plan = world_planner(world, _population(20_000, classes=10), 1.0, 1, 3)
    there = sum(plan(hour).counts["available"] for hour in range(24, 48))
    assert there / (24 * 20_000) == pytest.approx(share, abs=0.005)


def test_without_the_correlation_every_label_has_the_same_hours() -> None:
    world = World(availability=Availability(share=0.3, label_hours=0, noise_hours=1))
    population = _population(8000, classes=4)
    labels = dict(zip(population.names, (np.arange(len(population.names)) % 4).tolist(), strict=True))
    reports = world_planner(world, population, 1.0, 1, 3)(24).reports
    shares = np.bincount([labels[name] for name in reports]) / len(reports)
    assert shares == pytest.approx([0.25] * 4, abs=0.03)


def test_clients_without_labels_come_at_any_hour() -> None:
    population = replace(_population(10_000), labels=None, classes=0)
    world = World(availability=Availability(share=0.2))
    plan = world_planner(world, population, 1.0, 1, 0)
    for number in (1, 9, 17):
        assert len(plan(number).reports) / 10_000 == pytest.approx(0.2, abs=0.02)


def test_those_with_more_examples_and_slower_devices_are_late() -> None:
    """log(duration) is normal: its mean log(n·E·s), its variance that of device and round together."""
    sizes = np.repeat([50, 200], 5000)
    population = replace(_population(10_000), sizes=lambda _, numbers: sizes[numbers])
    stragglers = Stragglers(seconds_per_example=0.01, device_spread=0.4, round_spread=0.3, deadline_seconds=2.0)
    plan = world_planner(World(stragglers=stragglers), population, 1.0, 2, 4)
    size = dict(zip(population.names, sizes.tolist(), strict=True))
    rounds = [set(plan(number).reports) for number in (1, 2)]
    for examples in (50, 200):
        share = sum(size[name] == examples for name in rounds[0]) / 5000
        z = math.log(2.0 / (examples * 2 * 0.01)) / math.hypot(0.4, 0.3)
        assert share == pytest.approx(0.5 * (1 + math.erf(z / math.sqrt(2))), abs=0.02)
    assert plan(1).counts["late"] == 10_000 - len(rounds[0])
    # Slow devices stay slow: who was in time once is in time again more often than by chance.
    large = {name for name, examples in size.items() if examples == 200}
    once, twice = rounds[0] & large, rounds[0] & rounds[1] & large
    assert len(twice) / len(once) > len(rounds[1] & large) / len(large) + 0.1


def test_a_client_that_grows_takes_longer() -> None:
    """Without spread, who is in time has no more examples in that round than the deadline allows."""
    data = make_population(DataSpec("digits", clients=20, growth=Growth(present=0.3, added=0.2), seed=2))
    world = World(stragglers=Stragglers(0.01, device_spread=0, round_spread=0, deadline_seconds=0.4))
    plan = world_planner(world, ClientTraits.of(data.clients), 1.0, 1, 0)
    late = []
    for number in (1, 3, 6):
        there = data.clients.at(number)
        assert set(plan(number).reports) == {name for name, examples in there.items() if len(examples) <= 40}
        late.append(plan(number).counts["late"])
    assert 0 <= late[0] < late[1] < late[2] <= 20


def test_over_selection_takes_the_first_that_report() -> None:
    population = _population(1000)
    stragglers = Stragglers(device_spread=1.0, round_spread=0.0)
    planned = world_planner(World(1.3, stragglers=stragglers), population, 0.1, 1, 0)(1)
    all_of_them = world_planner(World(stragglers=stragglers), population, 0.13, 1, 0)(1)  # the same 130, fastest first
    assert (planned.counts["selected"], planned.counts["surplus"]) == (130, 30)
    assert list(planned.reports) == list(all_of_them.reports)[:100]


def test_where_nobody_is_left_nobody_reports() -> None:
    planned = world_planner(World(drop_out=1.0), _population(10), 0.5, 1, 0)(1)
    assert dict(planned.reports) == {}
    assert planned.counts["dropped_out"] == planned.counts["selected"] == 5


def test_a_round_of_a_large_population_makes_no_object_a_client() -> None:
    """200,000 clients: the arrays of the plan are numpy's, and a round's plan takes milliseconds, not seconds."""
    import tracemalloc

    population = _population(200_000)
    world = World(1.3, 0.1, Availability(0.3), Stragglers(deadline_seconds=5), Faults(0.05, malicious=0.1))
    plan = world_planner(world, population, 0.001, 1, 0)
    plan(1)
    tracemalloc.start()
    started = time.perf_counter()
    planned = plan(2)
    seconds = time.perf_counter() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 100 < len(planned.reports) <= 200
    assert peak < 200_000 * 60  # a few arrays of float64; as many Python objects would be more than that
    assert seconds < 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: World(over_selection=0.5), "world: over_selection should be from 1 to 100, not 0.5"),
        (lambda: World(drop_out=1.5), "world: drop_out should be from 0 to 1, not 1.5"),
        (lambda: World(drop_out=math.nan), "world: drop_out should be from 0 to 1, not nan"),
        (lambda: Availability(share=0), "world: share should be above 0 and at most 1, not 0"),
        (lambda: Availability(concentration=-1), "world: concentration should be from 0 to 50, not -1"),
        (lambda: Availability(label_hours=25), "world: label_hours should be from 0 to 24, not 25"),
        (lambda: Availability(noise_hours=math.inf), "world: noise_hours should be at least 0, not inf"),
        (lambda: Availability(round_minutes=0), "world: round_minutes should be above 0, not 0"),
        (lambda: Stragglers(seconds_per_example=0), "world: seconds_per_example should be above 0, not 0"),
        (lambda: Stragglers(device_spread=-1), "world: device_spread should be from 0 to 10, not -1"),
        (lambda: Stragglers(round_spread=11), "world: round_spread should be from 0 to 10, not 11"),
        (lambda: Stragglers(deadline_seconds=0), "world: deadline_seconds should be above 0, not 0"),
        (lambda: Faults(corrupt=2), "world: corrupt should be from 0 to 1, not 2"),
        (lambda: Faults(malicious=-1), "world: malicious should be from 0 to 1, not -1"),
        (lambda: Faults(corrupt_kind="x"), "world: corrupt_kind should be one of nan, scaled, sign-flipped, not 'x'"),
        (lambda: Faults(scale=math.nan), "world: scale should be finite in float32, not nan"),
        (lambda: Faults(scale=-1e39), "world: scale should be finite in float32, not -1e+39"),
    ],
)
def test_numbers_out_of_range_are_named(make: type[World], message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == message
