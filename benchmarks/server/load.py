"""Load on a server: many devices at once, over connections that stay open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar

from benchmarks.errors import BenchmarkError
from benchmarks.server.fleet import Device, of_round
from benchmarks.server.http import Connection
from benchmarks.server.process import Serving
from device_runtime import messages

CONNECTIONS = 64
_OPENING = 100  # connections that are being opened at a time
_POLL_SECONDS = 0.01
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class RoundTimes:
    """Seconds that a round's devices took, all of them.

    Attributes:
        check_ins: until all were accepted.
        configurations: until all had their work.
        reports: until all their reports were acknowledged.
        commit: from then until the new weights were there.
    """

    check_ins: float
    configurations: float
    reports: float
    commit: float


@asynccontextmanager
async def connections(url: str, count: int = CONNECTIONS) -> AsyncIterator[list[Connection]]:
    """So many open connections."""
    opened: list[Connection] = []
    try:
        while len(opened) < count:
            few = min(_OPENING, count - len(opened))
            opened += await asyncio.gather(*(Connection.open(url) for _ in range(few)))
        yield opened
    finally:
        for connection in opened:
            connection.close()


async def each(
    lines: Sequence[Connection], items: Iterable[_Item], act: Callable[[Connection, _Item], Awaitable[None]]
) -> float:
    """Have `act` done for each item, as many at a time as there are connections; the seconds that it took."""
    waiting: Iterator[_Item] = iter(items)

    async def work(line: Connection) -> None:
        for item in waiting:
            await act(line, item)

    start = perf_counter()
    await asyncio.gather(*map(work, lines))
    return perf_counter() - start


async def check_ins(lines: Sequence[Connection], devices: Sequence[Device], tokens: dict[str, str]) -> float:
    """Let devices check in, all of which are accepted; their tokens are put into `tokens`."""

    async def act(line: Connection, device: Device) -> None:
        tokens[device.name] = _token(*await line.ask(device.check_in))

    return await each(lines, devices, act)


async def scheduled_check_ins(
    lines: Sequence[Connection], devices: Sequence[Device], times: Sequence[float], tokens: dict[str, str]
) -> list[float]:
    """As `check_ins`, but each begins at its time, whether those before it have been answered or not.

    Args:
        lines, devices, tokens: as there.
        times: seconds from now on, one a device, the earliest first.

    Returns:
        For each the seconds from when it was to begin to its answer, in order of their size.
    """
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for line in lines:
        free.put_nowait(line)
    start = perf_counter()
    seconds: list[float] = []

    async def one(time: float, device: Device) -> None:
        line = await free.get()
        status, body = await line.ask(device.check_in)
        seconds.append(perf_counter() - start - time)
        tokens[device.name] = _token(status, body)
        free.put_nowait(line)

    begun = []
    for time, device in zip(times, devices, strict=True):
        if (wait := start + time - perf_counter()) > 0:
            await asyncio.sleep(wait)
        begun.append(asyncio.create_task(one(time, device)))
    await asyncio.gather(*begun)
    return sorted(seconds)


async def configurations(lines: Sequence[Connection], devices: Sequence[Device], tokens: dict[str, str]) -> float:
    """Let devices fetch their work in a round that has started."""

    async def act(line: Connection, device: Device) -> None:
        status, body = await line.ask(device.configuration(tokens[device.name]))
        if status != 200 or json.loads(body)["state"] != "start":
            raise BenchmarkError(f"a configuration was answered with status {status}: {body[:200]!r}")

    return await each(lines, devices, act)


async def reports(
    lines: Sequence[Connection], devices: Sequence[Device], tokens: dict[str, str], bodies: Sequence[bytes]
) -> float:
    """Let devices report, by turns one of these bodies."""

    async def act(line: Connection, numbered: tuple[int, Device]) -> None:
        number, device = numbered
        body = bodies[number % len(bodies)]
        status, answer = await line.ask(device.report(tokens[device.name], len(body)), body)
        if status != 200:
            raise BenchmarkError(f"a report was answered with status {status}: {answer[:200]!r}")

    return await each(lines, enumerate(devices), act)


async def whole_round(
    serving: Serving, lines: Sequence[Connection], devices: Sequence[Device], number: int, bodies: Sequence[bytes]
) -> RoundTimes:
    """A round of these devices, each of which reports; `number` is its own."""
    tokens: dict[str, str] = {}
    checked_in = await check_ins(lines, devices, tokens)
    configured = await configurations(lines, devices, tokens)
    own = [of_round(body, number) for body in bodies]
    reported = await reports(lines, devices, tokens, own)
    start = perf_counter()
    while (await status_of(serving, lines[0]))["committed_rounds"] < number:
        await asyncio.sleep(_POLL_SECONDS)
    return RoundTimes(checked_in, configured, reported, perf_counter() - start)


async def status_of(serving: Serving, line: Connection) -> dict[str, Any]:
    """What the server says of itself."""
    status, body = await line.ask(serving.viewer_asks(messages.STATUS))
    if status != 200:
        raise BenchmarkError(f"the status was answered with {status}: {body[:200]!r}")
    found: dict[str, Any] = json.loads(body)
    return found


def _token(status: int, body: bytes) -> str:
    reply = json.loads(body)
    if status != 200 or reply["decision"] != "accept":
        raise BenchmarkError(f"a check-in was answered with status {status}: {body[:200]!r}")
    return str(reply["token"])
