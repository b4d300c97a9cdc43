"""A server that is asked more than it can do: who has to wait is told for how long, each for another time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import httpx
import pytest

from aggregation_server.coordination.desk import BusyError, Desk
from aggregation_server.web.app import create_app
from aggregation_server.web.bodies import Memory
from device_runtime import messages
from tests.aggregation_server.fleet import Fleet, secret_of
from tests.aggregation_server.running import KEYS

Make = Callable[..., Fleet]


def test_a_herd_that_is_turned_away_comes_back_as_fast_as_it_is_wanted(make_fleet: Make) -> None:
    rate, herd = 50, 2000
    coordinator = make_fleet(checkin_rate=float(rate), retry_seconds=1.0).coordinator
    windows = [coordinator.busy_seconds() for _ in range(herd)]
    assert all(isinstance(window, int) and window >= 1 for window in windows)
    seconds = Counter(windows)
    assert max(windows) < 2 * herd / rate
    # They are spread: no second has many more of them than are wanted.
    assert max(seconds.values()) < 3 * rate


def test_a_busy_server_says_so_and_for_how_long(make_fleet: Make) -> None:
    fleet = make_fleet()
    desk = Desk(fleet.coordinator, fleet.committer)
    app = create_app(desk, fleet.enrolments, KEYS)

    async def ask() -> httpx.Response:
        desk.start()
        await asyncio.to_thread(desk.stop)  # from now on it takes nobody
        auth = ("a", secret_of("a"))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server", auth=auth) as client:
            return await client.post(messages.CHECK_IN, json={"population": "tiny", "client": "a", "runtime": "test"})

    answer = asyncio.run(ask())
    assert answer.status_code == 503
    assert answer.json() == {"reason": "busy", "message": "too many requests wait already"}
    assert int(answer.headers["Retry-After"]) >= 1


def test_uploads_wait_for_memory_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aggregation_server.web.bodies._BUSY_SECONDS", 0.5)
    order: list[str] = []

    async def upload(memory: Memory, name: str, size: int, until: asyncio.Event) -> None:
        async with memory.taken(size):
            order.append(name)
            await until.wait()

    async def run() -> None:
        memory, done = Memory(100), asyncio.Event()
        first = asyncio.create_task(upload(memory, "first", 60, done))
        await asyncio.sleep(0)
        second = asyncio.create_task(upload(memory, "second", 60, done))
        await asyncio.sleep(0.3)
        third = asyncio.create_task(upload(memory, "third", 10, done))
        await asyncio.sleep(0)
        assert order == ["first"]  # there is room for the third, but it is not its turn
        with pytest.raises(BusyError, match=r"^too many uploads at once$"):
            await second
        while len(order) < 2:  # nobody stands before the third one any more
            assert not third.done()
            await asyncio.sleep(0)
        assert order == ["first", "third"]
        done.set()
        await asyncio.gather(first, third)
        async with memory.taken(1000):  # all of it: nothing was lost on the way
            pass

    asyncio.run(run())
