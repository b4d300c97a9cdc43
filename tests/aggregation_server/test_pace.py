"""Pace steering: what is promised of the schedule, whatever the check-ins, and what devices make of it."""

from __future__ import annotations

import heapq
import json
import math
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_server.coordination.pace import JITTER, PaceSteering, RoundLengths
from device_runtime.device_state import DeviceState
from device_runtime.errors import InputError, NetworkError
from device_runtime.participant import Outcome, Participant
from device_runtime.server_client import ServerClient
from device_runtime.transport import RetryPolicy, Transport

SPACING = 1.3  # of slots, in parts of a second at the target rate


def slots(pace: PaceSteering, arrivals: list[float], next_selection: float | None = None) -> list[float]:
    """When devices that are told so at these times come at the latest."""
    found = []
    for now in arrivals:
        pace.arrived(now)
        found.append(now + (1 + JITTER) * pace.window(now, next_selection))
    return found


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_rate": 0}, "pace: target_rate should be above 0, not 0"),
        ({"target_rate": math.nan}, "pace: target_rate should be above 0, not nan"),
        ({"shortest": -1.0}, "pace: shortest should be above 0, not -1.0"),
        ({"longest": math.inf}, "pace: longest should be above 0, not inf"),
        ({"shortest": 5.0, "longest": 5.0}, "pace: longest should be above shortest, 5.0 seconds, not 5.0"),
    ],
)
def test_a_figure_out_of_range_is_named(fields: dict[str, float], message: str) -> None:
    with pytest.raises(InputError) as caught:
        PaceSteering(**fields)
    assert str(caught.value) == message


def test_a_herd_gets_a_slot_each_one_after_the_other() -> None:
    found = slots(PaceSteering(100.0), [50.0] * 10_000)
    assert found[0] == pytest.approx(52.4)  # a wait of the shortest, 2 seconds, and its jitter
    steps = np.diff([slot for slot in found if slot > 52.4])
    assert steps == pytest.approx(SPACING / 100)
    assert found[-1] == pytest.approx(50 + 10_000 * SPACING / 100, rel=0.02)


def test_nobody_comes_before_the_next_selection_unless_by_jitter_and_few_come_together() -> None:
    found = slots(PaceSteering(500.0), [10.0, 11.0, 30.0, 95.0], next_selection=100.0)
    assert found == pytest.approx([100.0] * 4, abs=4 * SPACING / 500)


def test_without_a_next_selection_the_wait_is_the_shortest_or_the_schedule_s() -> None:
    pace = PaceSteering(10.0, shortest=3.0)
    pace.arrived(0.0)
    assert pace.window(0.0) == 3.0
    for _ in range(100):
        pace.arrived(0.0)
    assert pace.window(0.0) == pytest.approx((3 + 100 * SPACING / 10) / (1 + JITTER))


def test_a_selection_in_the_past_is_none() -> None:
    pace = PaceSteering()
    pace.arrived(100.0)
    assert pace.window(100.0, 20.0) == 2.0


def test_a_selection_that_is_far_off_leaves_time_to_spread_devices() -> None:
    pace = PaceSteering(1.0, longest=1000.0)
    found = slots(pace, [0.0] * 300, next_selection=1e9)
    assert min(found) >= 500
    assert max(found) < 1010
    assert np.diff(found) == pytest.approx(SPACING)


def test_a_schedule_that_is_full_begins_anew_between_its_slots() -> None:
    pace = PaceSteering(1.0, longest=1000.0)
    found = slots(pace, [0.0] * 2000)
    assert all(2.0 * (1 + JITTER) - 1e-9 <= slot <= 1000 + 2 * SPACING for slot in found)
    counts, _ = np.histogram(found, bins=10, range=(0, 1000))
    assert counts.min() >= 0.9 * 2000 / 10 / 1.3 and counts.max() <= 1.3 * 2000 / 10


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.none() | st.floats(-10, 300), st.booleans(), st.booleans()),
        min_size=1,
        max_size=200,
    ),
    st.sampled_from([0.5, 3.0, 40.0]),
)
def test_slots_never_come_faster_than_the_target(
    check_ins: list[tuple[float, float | None, bool, bool]], rate: float
) -> None:
    pace, now, told = PaceSteering(rate, shortest=1.0, longest=1e6), 0.0, []
    for later, selection, accepted, busy in check_ins:
        now += later
        pace.arrived(now)
        if accepted:
            continue
        ahead = None if selection is None else now + selection
        if busy:
            again = pace.retry_after(now, random.Random(0), ahead)
            assert 1 <= again <= 1e6
            continue
        wait = pace.window(now, ahead)
        assert 1.0 <= wait <= 1e6
        if wait > 1.0:  # a slot that is nearer than the shortest wait is not kept
            slot = now + wait * (1 + JITTER)
            assert ahead is None or slot >= ahead - 1e-9
            told.append(slot)
    assert all(later - earlier >= SPACING / rate - 1e-6 for earlier, later in pairwise(told))


def test_devices_that_obey_come_at_the_target_rate_and_are_counted() -> None:
    pace, rng = PaceSteering(50.0), random.Random(5)
    returns = [(rng.uniform(0, 3), device) for device in range(5_000)]
    heapq.heapify(returns)
    came, now, counted = [], 0.0, []
    while now < 1500:
        now, device = heapq.heappop(returns)
        came.append(now)
        pace.arrived(now)
        heapq.heappush(returns, (now + pace.window(now) * rng.uniform(1 - JITTER, 1 + JITTER), device))
        if now > 1200:
            counted.append((pace.waiting(now), pace.rate(now)))
    rates = np.histogram(came, bins=np.arange(10, 1500, 20.0))[0] / 20
    assert rates.max() <= 50 + 3 * math.sqrt(50 / 20)  # three standard deviations of chance arrivals
    settled = rates[-15:].mean()
    assert pace.settled_rate == pytest.approx(50 / SPACING)
    assert settled == pytest.approx(pace.settled_rate, rel=0.05)
    waiting, rate = np.mean(counted, axis=0)
    assert waiting == pytest.approx(5_000, rel=0.05)
    assert rate == pytest.approx(settled, rel=0.05)


def test_a_process_that_starts_anew_settles_again() -> None:
    pace, rng, started = PaceSteering(50.0), random.Random(5), False
    returns = [(rng.uniform(0, 3), device) for device in range(5_000)]
    heapq.heapify(returns)
    came, now = [], 0.0
    while now < 1200:
        now, device = heapq.heappop(returns)
        if now > 600 and not started:
            pace, started = PaceSteering(50.0), True
        came.append(now)
        pace.arrived(now)
        heapq.heappush(returns, (now + pace.window(now) * rng.uniform(1 - JITTER, 1 + JITTER), device))
    rates = np.histogram(came, bins=np.arange(600, 1200, 20.0))[0] / 20
    assert rates.max() <= 1.6 * 50 + 3 * math.sqrt(80 / 20)
    assert rates[10:].max() <= 50


def test_before_anybody_came_nobody_is_counted() -> None:
    pace = PaceSteering()
    assert (pace.rate(7.0), pace.waiting(7.0)) == (0.0, 0.0)
    pace.arrived(7.0)
    assert pace.rate(7.0) == pytest.approx(1.0, rel=0.01)
    assert pace.rate(10_007.0) == pytest.approx(0.0, abs=1e-12)


def test_a_busy_server_s_windows_come_out_as_those_of_rejected_devices() -> None:
    rng = random.Random(1)
    waits = []
    for _ in range(20_000):
        pace = PaceSteering()
        pace.arrived(0.0)
        waits.append(pace.retry_after(0.0, rng, next_selection=1200.0) * (1 + JITTER * rng.random()))
    counts, _ = np.histogram(waits, bins=11, range=(1000 / 1.2, 1200))
    assert counts.sum() >= 19_990  # the rest by whole seconds
    assert counts == pytest.approx(np.full(11, 20_000 / 11), rel=0.1)


@pytest.mark.parametrize(
    ("lengths", "now", "expected"),
    [
        ([], 10.0, 10.5),  # nothing is known: a twentieth of the round so far
        ([100.0], 10.0, 75.0),  # less a quarter, at first
        ([100.0] * 50, 10.0, 100.0),
        ([80.0, 120.0] * 50, 10.0, 80.0),  # the mean is 102.9, the deviation 22.9
        ([100.0] * 50, 110.0, 115.5),  # overdue
        ([100.0] * 50, 179.0, 180.0),  # the deadline
        ([500.0] * 50, 10.0, 180.0),
    ],
)
def test_the_next_selection_is_expected_from_rounds_before(lengths: list[float], now: float, expected: float) -> None:
    rounds = RoundLengths()
    for seconds in lengths:
        rounds.ended(seconds)
    assert rounds.next_selection(began=0.0, now=now, deadline=180.0) == pytest.approx(expected, abs=0.1)


@given(st.lists(st.floats(0, 1e4), max_size=20), st.floats(0, 1e3), st.floats(0, 1e3))
def test_the_next_selection_is_neither_past_nor_behind_the_deadline(
    lengths: list[float], began: float, length: float
) -> None:
    rounds = RoundLengths()
    for seconds in lengths:
        rounds.ended(seconds)
    assert began + length <= rounds.next_selection(began, began + length, began + 2000) <= began + 2000


@pytest.fixture
def busy_server() -> Iterator[str]:
    """Rejects for 10 seconds at the first check-in, and is too busy for 10 seconds at all others."""
    answers = iter([200])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status = next(answers, 503)
            body = json.dumps({"decision": "reject", "reason": "round_started", "retry_after_seconds": 10.0}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if status == 503:
                self.send_header("Retry-After", "10")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("jitter", [-1.0, -0.5, 0.0, 1.0])
def test_devices_wait_as_the_schedule_takes_them_to(busy_server: str, tmp_path: Path, jitter: float) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=np.zeros((1, 2), np.float32), y=np.zeros(1, np.int32))
    waits: list[float] = []
    transport = Transport(busy_server, retry=RetryPolicy(attempts=3), sleep=waits.append, jitter=lambda: jitter)
    with DeviceState(tmp_path / "state") as state:
        device = Participant(
            ServerClient(transport),
            "p",
            "phone",
            {"training": data},
            tmp_path,
            state,
            sleep=waits.append,
            jitter=lambda: jitter,
        )
        assert device.take_part().outcome is Outcome.REJECTED
        assert waits == pytest.approx([10 * (1 + JITTER * jitter)])
        waits.clear()
        with pytest.raises(NetworkError, match="status 503"):
            device.take_part()
        assert waits == pytest.approx([10 * (1 + JITTER * abs(jitter))] * 2)
