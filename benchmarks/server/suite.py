"""The benchmarks of `pocketfed bench server`: a real server under load from this process, both on one machine.

Beside it and by turns with it, `benchmarks.server.reference` is put under the same load, so that what else the machine
does weighs on both.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import uvloop

from benchmarks.errors import BenchmarkError
from benchmarks.result import Result
from benchmarks.server import load
from benchmarks.server.bundle import tensors_of, write_bundle
from benchmarks.server.fleet import Device, enrolled, updates
from benchmarks.server.http import Connection, request_head
from benchmarks.server.process import Serving, reference, server
from benchmarks.server.reference import REPORTS
from benchmarks.suite import Progress, chosen, measure_each
from device_runtime.bundle import open_bundle

NAMES = (
    "reports_per_second_mlp_q4",
    "reports_per_second_cnn_q8",
    "checkins_per_second",
    "checkin_p99_ms",
    "server_peak_mb",
    "idle_connections",
)
_BARE = "a bare ASGI endpoint"
_BASE_MB = 250
_IDLE_SECONDS = 8.0  # longer than uvicorn keeps a connection by itself


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        turns: of the server and of the reference.
        mlp, cnn: reports of a turn.
        check_ins: of a turn.
        rate: check-ins a second that are scheduled.
        large, small: devices of the rounds whose memory is compared.
        idle: connections.
    """

    turns: int = 5
    mlp: int = 1000
    cnn: int = 512
    check_ins: int = 2000
    rate: float = 750.0
    large: int = 10_000
    small: int = 1000
    idle: int = 5000


_FULL = Sizes()
_QUICK = Sizes(turns=1, mlp=50, cnn=5, check_ins=100, large=100, small=20, idle=200)


@dataclass(frozen=True)
class Stage:
    """A server on a model, the reference, and connections to both.

    Attributes:
        serving: the server.
        devices: that it knows.
        bodies: valid reports of round 0.
        lines: connections to the server.
        bare: as many to the reference.
        kept: the reference's file of reports.
    """

    serving: Serving
    devices: list[Device]
    bodies: list[bytes]
    lines: list[Connection]
    bare: list[Connection]
    kept: Path


def run_server_benchmarks(
    names: Sequence[str], quick: bool, progress: Progress = lambda done, figures: None
) -> list[Result]:
    """Measure what `names` says, or everything where it is empty.

    Args:
        names: of `NAMES`.
        quick: small numbers: to try whether it runs.
        progress: told how many are done, and the next one.

    Raises:
        BenchmarkError: a name is unknown, a server failed, or gave another answer than it should.
    """
    names = chosen(names, NAMES)
    if sys.platform != "linux":
        raise BenchmarkError("the server's memory and connections are measured on Linux alone")
    sizes = _QUICK if quick else _FULL
    _allow_files(2 * sizes.idle)
    measures: dict[str, Callable[[], Coroutine[Any, Any, Result]]] = {
        NAMES[0]: lambda: _reports(NAMES[0], "mnist_2nn", "q4", sizes.mlp, sizes),
        NAMES[1]: lambda: _reports(NAMES[1], "mnist_cnn", "q8", sizes.cnn, sizes),
        NAMES[2]: lambda: _check_ins(sizes),
        NAMES[3]: lambda: _latency(sizes),
        NAMES[4]: lambda: _memory(sizes),
        NAMES[5]: lambda: _idle(sizes),
    }
    return measure_each(names, lambda name: uvloop.run(measures[name]()), progress)


async def _reports(name: str, model: str, codec: str, count: int, sizes: Sizes) -> Result:
    """Reports that are validated, durable and aggregated: from the first one's start to the end of the commit."""
    seconds, bare = [], []
    async with _stage(model, codec, count, count) as stage:
        tokens = dict.fromkeys((device.name for device in stage.devices), "0" * 80)
        for number in range(1, sizes.turns + 1):
            times = await load.whole_round(stage.serving, stage.lines, stage.devices, number, stage.bodies)
            seconds.append(times.reports + times.commit)
            bare.append(await load.reports(stage.bare, stage.devices, tokens, stage.bodies))
            os.truncate(stage.kept, 0)  # as the server deletes its own: else the disk and its cache fill up, for both
        note = (
            f"rounds of {count} reports of {len(stage.bodies[0])} bytes, with their commit; {_spread(count, seconds)}"
            f" (the reference's {_spread(count, bare)})"
        )
    return Result(name, count / min(seconds), "1/s", f"{_BARE}, write and fsync", count / min(bare), note)


async def _check_ins(sizes: Sizes) -> Result:
    """Check-ins that are accepted, as many as the server answers."""
    count, seconds, bare = sizes.check_ins, [], []
    async with _stage("mnist_2nn", "q4", count * sizes.turns, count * sizes.turns) as stage:
        for turn in range(sizes.turns):
            devices = stage.devices[turn * count : (turn + 1) * count]
            seconds.append(await load.check_ins(stage.lines, devices, {}))
            bare.append(await load.check_ins(stage.bare, devices, {}))
    note = f"{count} devices, all accepted; {_spread(count, seconds)}"
    return Result("checkins_per_second", count / min(seconds), "1/s", _BARE, count / min(bare), note)


async def _latency(sizes: Sizes) -> Result:
    """The 99th percentile of check-ins that come at their times, whether or not those before are answered."""
    count, here, bare = sizes.check_ins, [], []
    times = [place / sizes.rate for place in range(count)]
    async with _stage("mnist_2nn", "q4", count * sizes.turns, count * sizes.turns) as stage:
        for turn in range(sizes.turns):
            devices = stage.devices[turn * count : (turn + 1) * count]
            here.append(await load.scheduled_check_ins(stage.lines, devices, times, {}))
            bare.append(await load.scheduled_check_ins(stage.bare, devices, times, {}))
    ours, theirs = (min(1e3 * seconds[int(0.99 * count)] for seconds in turns) for turns in (here, bare))
    turns = ", ".join(f"{1e3 * seconds[int(0.99 * count)]:.1f}" for seconds in here)
    note = f"{sizes.rate:.0f} check-ins a second, {count} a turn; all turns {turns} ms"
    return Result("checkin_p99_ms", ours, "ms", _BARE, theirs, note)


async def _memory(sizes: Sizes) -> Result:
    """The server's peak in a large round."""
    peaks = []
    for count in (sizes.small, sizes.large):
        async with _stage("mnist_2nn", "q4", count, count) as stage:
            times = await load.whole_round(stage.serving, stage.lines, stage.devices, 1, stage.bodies)
            peaks.append(stage.serving.peak_mb)
    note = (
        f"a round of {sizes.large} devices, mnist_2nn, q4, in {sum(vars(times).values()):.0f} s;"
        f" {peaks[0]:.0f} MB with {sizes.small}"
    )
    limit = _BASE_MB + 6 * 4e-6 * sum(spec.size for spec in tensors_of("mnist_2nn"))
    return Result("server_peak_mb", peaks[1], "MB", f"fixed, {_BASE_MB} MB and 6 models", limit, note)


async def _idle(sizes: Sizes) -> Result:
    """Connections that are still there after a while in which nothing came over them."""
    async with _stage("mnist_2nn", "q4", 1, 1) as stage:
        serving, before = stage.serving, stage.serving.memory_mb
        head = request_head("GET", "/healthz", {})
        async with load.connections(serving.url, sizes.idle) as lines:
            for line in lines:
                await line.ask(head)
            taken = serving.memory_mb - before
            await asyncio.sleep(_IDLE_SECONDS)
            held = sum(not line.closed for line in lines)
            start = perf_counter()
            if held:
                await next(line for line in lines if not line.closed).ask(stage.devices[0].check_in)
            answered = 1e3 * (perf_counter() - start)
    note = (
        f"for {_IDLE_SECONDS:.0f} s; they take {taken:.0f} MB of the server's memory, and a check-in {answered:.1f} ms"
    )
    return Result("idle_connections", held, "connections", "all of them", sizes.idle, note)


@asynccontextmanager
async def _stage(model: str, codec: str, devices: int, goal: int) -> AsyncIterator[Stage]:
    """Both servers, run side by side; only one of them is under load at a time."""
    with tempfile.TemporaryDirectory(prefix="pocketfed-") as name:
        folder = Path(name)
        bundle = write_bundle(model, folder)
        manifest = open_bundle(bundle).manifest
        (folder / "server").mkdir()
        known = enrolled(f"sqlite:///{folder / 'server' / f'pocketfed-{model}.db'}", bundle, devices)
        options = ["--goal", str(goal), "--over-selection", "1", "--codec", codec]
        options += ["--selection-timeout", "3600", "--reporting-timeout", "3600"]
        with server(bundle, folder / "server", options) as serving, reference(folder / "reference") as other:
            async with load.connections(serving.url) as lines, load.connections(other.url) as bare:
                bodies = updates(manifest.tensors, manifest.model_id, codec)
                yield Stage(serving, known, bodies, lines, bare, other.folder / REPORTS)


def _spread(count: int, seconds: Sequence[float]) -> str:
    return "all turns " + ", ".join(f"{count / one:.0f}" for one in seconds)


def _allow_files(count: int) -> None:
    """Let this process, and those that it starts, have so many files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        if hard != resource.RLIM_INFINITY and hard < count:
            raise BenchmarkError(f"{count} files can't be open at once here, only {hard}: raise 'ulimit -n'")
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
