"""The model of a large fleet: its formulas are held to a simulation, its sizing to sums by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from aggregation_server.coordination.pace import PaceSteering
from benchmarks.fleet_model import Fleet, Process, main, sized
from benchmarks.fleet_queue import Load, predicted, simulated

REQUESTS = 20_000


@pytest.mark.parametrize(
    "load",
    [
        Load(1, 300, 0.0005, 0.002, 0.0002),
        Load(1, 1200, 0.0005, 0.002, 0.0002),
        Load(2, 1000, 0.0005, 0.002, 0.0002),
        Load(4, 2200, 0.0005, 0.002, 0.0003),
        Load(8, 200, 0.0005, 0.003, 0.0001),
        Load(8, 5000, 0.0005, 0.003, 0.0001),
        Load(16, 800, 0.0005, 0.001, 0.0001),
    ],
    ids=lambda load: f"{load.front_ends} front ends, {load.rate} a second",
)
def test_utilisation_and_queues_are_as_foretold(load: Load) -> None:
    foretold, seen = predicted(load), simulated(load, REQUESTS / load.rate, seed=1)
    for name in ("loop_utilisation", "row_utilisation", "transactions", "batch"):
        assert getattr(foretold, name) == pytest.approx(getattr(seen, name), rel=0.03), name
    for name in ("loop_queue", "row_queue", "seconds"):
        assert getattr(foretold, name) == pytest.approx(getattr(seen, name), rel=0.1), name


@pytest.mark.parametrize("load", [Load(2, 5000, 0.0005, 0.002, 0.0001), Load(8, 5000, 0.0005, 0.002, 0.00025)])
def test_more_than_can_be_done_has_no_end(load: Load) -> None:
    assert math.isinf(predicted(load).seconds)
    assert simulated(load, 4).seconds > 2 * simulated(load, 1).seconds  # the queue grows and grows


def test_batches_make_a_busy_row_do_with_few_transactions() -> None:
    few, many = (predicted(Load(4, rate, 0.0005, 0.002, 0.0001)) for rate in (500.0, 4000.0))
    assert many.transactions < few.transactions
    assert many.batch > 8 * few.batch


def test_active_devices_swing_fourfold_around_their_mean() -> None:
    fleet = Fleet()
    hours = [fleet.active_at(hour) for hour in range(24)]
    assert max(hours) == pytest.approx(4 * min(hours))
    assert sum(hours) / 24 == pytest.approx(2_000_000)


def test_the_sizing_adds_up() -> None:
    fleet, process = Fleet(), Process()
    found = sized(fleet, process)
    assert found.check_ins == PaceSteering(2000.0).settled_rate
    front_ends = found.front_ends - fleet.spare
    assert found.aggregation == pytest.approx(16 * 256 * 0.0011 + 31 * 0.002)  # 31 parts on two threads
    assert found.period == pytest.approx(10_010 / found.check_ins + 150 + found.aggregation)
    assert found.reports == pytest.approx(7_700 / found.period)
    assert found.requests == pytest.approx(found.check_ins + (10_010 + 7_700) / found.period)
    assert (found.written, found.held) == (found.reports * 1.7e6, 7_700 * 1.7e6)
    busy = (found.requests - found.reports) / 1500 + found.reports * (1 / 150 + 0.0011)
    assert busy / front_ends <= 0.6 < busy / (front_ends - 1)


def test_half_the_speed_takes_about_twice_the_front_ends() -> None:
    fleet, process = replace(Fleet(), target_rate=20_000.0, spare=0), Process()
    slow = replace(process, check_ins=process.check_ins / 2, reports=process.reports / 2)
    assert sized(fleet, slow).front_ends == pytest.approx(2 * sized(fleet, process).front_ends, rel=0.1)


def test_it_prints_tables_for_a_fleet_of_one_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--devices", "1000000", "--target-rate", "200", "--goal", "770"])
    told = capsys.readouterr().out
    assert "| check-ins | 154/s |" in told
    assert "| the busiest hour | 320,000 | 35 min |" in told
    assert "| front ends | 2, 1 of them spare |" in told
    assert told.count("\n| --- |") == 3
