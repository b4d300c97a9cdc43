"""The model of a fleet's servers (`benchmarks.fleet_queue`), held to real ones.

    python -m benchmarks.fleet_measured                        # one server, on SQLite
    python -m benchmarks.fleet_measured --db postgresql://…    # an empty database: one server on it, then two

Devices check in at random instants, so many a second in the mean, from this process on the same machine. What one
server's transactions and processor time are at all rates gives the model its three figures; it then foretells how many
transactions there are, how many requests are in one, how long the fleet's row is held, and how long a request takes.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import mean
from time import perf_counter

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from sklearn.linear_model import LinearRegression

from benchmarks.errors import BenchmarkError
from benchmarks.fleet_queue import Load, predicted
from benchmarks.server import load
from benchmarks.server.bundle import write_bundle
from benchmarks.server.fleet import Device, enrolled
from benchmarks.server.http import Connection
from benchmarks.server.process import Serving, server
from device_runtime.errors import PocketfedError

_RATES = (100.0, 200.0, 400.0, 800.0)  # check-ins a second
_SECONDS = 8.0
_WARM_UP = 100  # check-ins of a server that has just started
_MODEL = "digits_mlp"


@dataclass(frozen=True)
class Measured:
    """Servers under a rate of check-ins.

    Attributes:
        servers: on one database.
        rate: requests a second that were answered.
        transactions: a second, of all servers.
        batch: requests in a transaction.
        hold: seconds for which a transaction held the row.
        work: seconds of the servers' processor time a request.
        seconds: from when a request was due to its answer, in the mean.
    """

    servers: int
    rate: float
    transactions: float
    batch: float
    hold: float
    work: float
    seconds: float


@dataclass(frozen=True)
class Costs:
    """What the model is told; the fields are those of `benchmarks.fleet_queue.Load`."""

    loop_seconds: float
    transaction_seconds: float
    request_seconds: float


def costs(cells: Sequence[Measured]) -> Costs:
    """The figures that fit best what one server took at several rates.

    What a transaction takes is a line over its requests. The event loop has the processor time that is not theirs; it
    is that of the highest rate, where the least of it goes into waiting for something to do.
    """
    lengths = np.array([[1.0, cell.batch] for cell in cells])
    line = LinearRegression(fit_intercept=False, positive=True).fit(lengths, [cell.hold for cell in cells])
    transaction, request = map(float, line.coef_)
    busiest = max(cells, key=lambda cell: cell.rate)
    return Costs(max(busiest.work - request, 0.0), transaction, request)


def table(cells: Sequence[Measured]) -> str:
    """What is foretold and what was measured, as Markdown."""
    found = costs([cell for cell in cells if cell.servers == 1])
    lines = [
        f"Event loop {found.loop_seconds * 1e3:.2f} ms a request;"
        f" a transaction {found.transaction_seconds * 1e3:.2f} ms and {found.request_seconds * 1e3:.3f} ms a request.",
        "",
        "| servers | requests a second | transactions a second | requests in one | row held | until the answer |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for cell in cells:
        what = predicted(Load(cell.servers, cell.rate, **vars(found)))
        lines.append(
            f"| {cell.servers} | {cell.rate:.0f} | {what.transactions:.0f}, {cell.transactions:.0f}"
            f" | {what.batch:.2f}, {cell.batch:.2f} | {what.row_utilisation:.0%}, {cell.transactions * cell.hold:.0%}"
            f" | {what.seconds * 1e3:.1f}, {cell.seconds * 1e3:.1f} ms |"
        )
    return "\n".join(lines)


async def measured(
    folder: Path, database: str, servers: int, rates: Sequence[float], seconds: float, seed: int
) -> list[Measured]:
    """Put one server and then more under each rate, for so many seconds each.

    Args:
        folder: for the servers' files.
        database: URL of an empty one.
        servers: that share it at most.
        rates: check-ins a second, of all servers together.
        seconds: for each rate.
        seed: of the instants.

    Raises:
        BenchmarkError: a server failed, or the database is not empty.
    """
    bundle = write_bundle(_MODEL, folder)
    rng = random.Random(seed)  # noqa: S311
    counts = [max(round(rate * seconds), 1) for rate in rates]
    count = servers * (sum(counts) + _WARM_UP)
    try:
        devices = iter(enrolled(database, bundle, count))
    except PocketfedError as error:
        raise BenchmarkError(f"{error}; expected an empty database") from None
    options = ["--db", database, "--spool", str(folder / "spool"), "--goal", str(count)]
    options += ["--over-selection", "1", "--selection-timeout", "86400"]
    found = []
    async with AsyncExitStack() as stack:
        serving: list[Serving] = []
        lines: list[Connection] = []
        for number in range(1, servers + 1):
            serving.append(stack.enter_context(server(bundle, folder / f"server-{number}", options)))
            more = await stack.enter_async_context(load.connections(serving[-1].url))
            lines = [line for pair in zip(lines, more, strict=True) for line in pair] if lines else more
            await load.check_ins(more, [next(devices) for _ in range(_WARM_UP)], {})
            for rate, asked in zip(rates, counts, strict=True):
                taken = [next(devices) for _ in range(asked)]
                times = list(accumulate(rng.expovariate(rate) for _ in taken))
                found.append(await _cell(serving, lines, taken, times))
    return found


async def _cell(
    serving: Sequence[Serving], lines: Sequence[Connection], devices: Sequence[Device], times: Sequence[float]
) -> Measured:
    before, start = [await _figures(one) for one in serving], perf_counter()
    seconds = await load.scheduled_check_ins(lines, devices, times, {})
    elapsed = perf_counter() - start
    after = [await _figures(one) for one in serving]
    turns, requests, held, work = np.sum(np.subtract(after, before), axis=0)
    if round(requests) != len(devices):
        raise BenchmarkError(f"the servers answered {requests:.0f} of {len(devices)} check-ins")
    return Measured(
        len(serving),
        requests / elapsed,
        turns / elapsed,
        requests / turns,
        held / turns,
        work / requests,
        mean(seconds),
    )


async def _figures(serving: Serving) -> tuple[float, ...]:
    """Transactions, requests in them, seconds of them, and seconds of processor time, since the server started."""
    async with load.connections(serving.url, 1) as (line,):
        status, body = await line.ask(serving.viewer_asks("/metrics"))
    if status != 200:
        raise BenchmarkError(f"the metrics were answered with status {status}")
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if not sample.labels
    }
    names = ("turn_seconds_count", "turn_requests_total", "turn_seconds_sum")
    return (*(samples[f"pocketfed_{name}"] for name in names), samples["process_cpu_seconds_total"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what was foretold and what was measured."""
    parser = argparse.ArgumentParser(description="The model of a fleet's servers, held to real ones.")
    parser.add_argument("--db", metavar="URL", help="an empty PostgreSQL database, for one server and then for two")
    parser.add_argument("--rates", type=float, nargs="+", default=list(_RATES), metavar="R", help="%(default)s")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="for each rate (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the instants (%(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="pocketfed-") as name:
        folder = Path(name)
        database, servers = (options.db, 2) if options.db else (f"sqlite:///{folder / 'server.db'}", 1)
        try:
            cells = asyncio.run(measured(folder, database, servers, options.rates, options.seconds, options.seed))
        except BenchmarkError as error:
            parser.exit(3, f"{error}\n")
    print(table(cells))


if __name__ == "__main__":
    main()
