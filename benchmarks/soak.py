"""Thousands of short rounds with devices that drop out, send rubbish, come late and say things twice.

    python -m benchmarks.soak --rounds 10000

A real server trains `digits_mlp` with devices that train nothing. What they were answered is compared with what the
server has counted, in all and round by round, so that a report that was lost or counted twice is found; and straight
lines through its memory and through the size of its database tell whether either grows without end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import uvloop

from benchmarks.errors import BenchmarkError
from benchmarks.server import load
from benchmarks.server.bundle import tensors_of, write_bundle
from benchmarks.server.fleet import Device, enrolled, of_round, updates
from benchmarks.server.http import Connection
from benchmarks.server.process import Serving, server
from device_runtime.tensors import model_id

MODEL, CODEC = "digits_mlp", "q4"
DEVICES, COHORT, GOAL = 24, 20, 8
DROP_OUT, CORRUPT, LATE, TWICE = 0.3, 0.05, 0.05, 0.05
LARGEST_SLOPE = 1.0  # MB of memory in 1000 rounds
_HASTE = 0.05  # devices wait for this much of what they are told
_PAGE = 1000
_OPTIONS = ["--goal", str(GOAL), "--over-selection", str(COHORT / GOAL), "--codec", CODEC, "--retry-seconds", "0.2"]
_OPTIONS += ["--selection-timeout", "2", "--reporting-timeout", "0.5"]


@dataclass
class Ledger:
    """What devices were answered.

    Attributes:
        answers: how many of each kind: ``checked_in``, ``accepted``, ``reported``, ``late`` and reasons of refusals.
        reports: by the number of a round's attempt, those that were accepted.
    """

    answers: Counter[str] = field(default_factory=Counter)
    reports: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class Sample:
    """How things stand after so many rounds; memory and the database's files in MB of 10⁶ bytes."""

    rounds: int
    memory: float
    database: float


class Client:
    """A device's behaviour.

    Args:
        device: who it is.
        line: its connection.
        bodies: valid reports of round 0.
        ledger: where it writes what it was answered.
        rng: its luck.
    """

    def __init__(
        self, device: Device, line: Connection, bodies: Sequence[bytes], ledger: Ledger, rng: random.Random
    ) -> None:
        self._device = device
        self._line = line
        self._bodies = bodies
        self._ledger = ledger
        self._rng = rng
        self._last = ""  # the token with which it is through

    async def run(self) -> None:
        """Take part until the task is complete."""
        while True:
            reply = await self._ask(self._device.check_in)
            self._ledger.answers["checked_in"] += 1
            if reply["decision"] == "complete":
                return
            self._ledger.answers["accepted"] += reply["decision"] == "accept"
            if reply["decision"] == "reject" or reply["token"] == self._last:
                await asyncio.sleep(_HASTE * (reply["retry_after_seconds"] or 1.0))
                continue
            self._last = reply["token"]
            await self._take_part(reply["token"])

    async def _take_part(self, token: str) -> None:
        work = await self._configuration(token)
        luck = self._rng.random()
        if work is None or luck < DROP_OUT:
            return
        body = of_round(self._rng.choice(self._bodies), work["round_number"])
        if luck < DROP_OUT + CORRUPT:
            place = self._rng.randrange(len(body))
            body = body[:place] + bytes([body[place] ^ 1 << self._rng.randrange(8)]) + body[place + 1 :]
        elif luck < DROP_OUT + CORRUPT + LATE:
            while await self._configuration(token) is not None:
                await asyncio.sleep(_HASTE)
        for _ in range(1 + (self._rng.random() < TWICE)):
            await self._report(token, body)

    async def _configuration(self, token: str) -> dict[str, Any] | None:
        """The work; None where the round is over."""
        while (work := await self._ask(self._device.configuration(token)))["state"] == "wait":
            await asyncio.sleep(_HASTE * work["retry_after_seconds"])
        return work if work["state"] == "start" else None

    async def _report(self, token: str, body: bytes) -> None:
        reply = await self._ask(self._device.report(token, len(body)), body)
        if reply["verdict"] == "accepted":
            self._ledger.answers["reported"] += 1
            self._ledger.reports[int(token.partition("-")[0])] += 1
        else:
            self._ledger.answers["late" if reply["verdict"] == "aborted" else reply["reason"]] += 1

    async def _ask(self, head: bytes, body: bytes = b"") -> dict[str, Any]:
        _, answer = await self._line.ask(head, body)
        found: dict[str, Any] = json.loads(answer)
        return found


async def soak(rounds: int, seed: int = 0) -> tuple[list[Sample], list[str]]:
    """Hold so many rounds.

    Returns:
        Samples, and in a line each what does not agree; there should be none.
    """
    specs = tensors_of(MODEL)
    bodies = updates(specs, model_id(MODEL, specs), CODEC)
    ledger = Ledger()
    with tempfile.TemporaryDirectory(prefix="pocketfed-") as name:
        folder = Path(name) / "server"
        folder.mkdir()
        bundle = write_bundle(MODEL, Path(name))
        devices = enrolled(f"sqlite:///{folder / f'pocketfed-{MODEL}.db'}", bundle, DEVICES)
        with server(bundle, folder, [*_OPTIONS, "--rounds", str(rounds)]) as serving:
            async with load.connections(serving.url, 1 + DEVICES) as (line, *lines):
                clients = [
                    Client(device, own, bodies, ledger, random.Random(f"{seed}/{device.name}"))  # noqa: S311 - no secret
                    for device, own in zip(devices, lines, strict=True)
                ]
                samples = await _watched(serving, line, asyncio.gather(*(one.run() for one in clients)), rounds)
                return samples, await _disagreements(serving, line, ledger)


async def _watched(serving: Serving, line: Connection, clients: asyncio.Future[Any], rounds: int) -> list[Sample]:
    samples: list[Sample] = []
    start = perf_counter()
    step = max(1, min(100, rounds // 20))
    while not clients.done():
        await asyncio.wait([clients], timeout=0.5)
        done = (await load.status_of(serving, line))["committed_rounds"]
        if not samples or done >= samples[-1].rounds + step or clients.done():
            size = sum(path.stat().st_size for path in serving.folder.glob("*.db*"))
            samples.append(Sample(done, serving.memory_mb, size / 1e6))
            said = f"{samples[-1].memory:.1f} MB, database {samples[-1].database:.1f} MB"
            print(f"{done} of {rounds} rounds in {perf_counter() - start:.0f} s: {said}", flush=True)
    clients.result()
    return samples


async def _disagreements(serving: Serving, line: Connection, ledger: Ledger) -> list[str]:
    """What the server says otherwise than the devices heard it."""
    counts = (await load.status_of(serving, line))["counts"]
    theirs = Counter({name: counts[name] for name in ("checked_in", "accepted", "reported", "late")}) + Counter(
        counts["refused"]
    )
    found = [
        f"{name}: devices heard it {ledger.answers[name]} times, the server counted {theirs[name]}"
        for name in sorted({*ledger.answers, *theirs})
        if ledger.answers[name] != theirs[name]
    ]
    records = await _records(serving, line)
    for record in records:
        said = record["clients"] if record["outcome"] == "committed" else record["counts"]["reported"]
        if said != ledger.reports[record["id"]]:
            heard = ledger.reports[record["id"]]
            found.append(f"attempt {record['id']}: {heard} reports were accepted, and {said} of them counted")
    unknown = set(ledger.reports) - {record["id"] for record in records}
    return found + [f"attempt {number}: its reports are in no record" for number in sorted(unknown)]


async def _records(serving: Serving, line: Connection) -> list[dict[str, Any]]:
    """All rounds that are over."""
    records: list[dict[str, Any]] = []
    before = 2**31 - 1
    while True:
        status, body = await line.ask(serving.viewer_asks(f"/v1/rounds?limit={_PAGE}&before={before}"))
        if status != 200:
            raise BenchmarkError(f"the rounds were answered with status {status}: {body[:200]!r}")
        page = json.loads(body)
        if not page:
            return records
        records += page
        before = min(record["id"] for record in page)


def slope(samples: Sequence[Sample], values: Sequence[float]) -> float:
    """By how much a value grows in 1000 rounds: a straight line through all but the first quarter."""
    warm = [place for place, sample in enumerate(samples) if sample.rounds >= samples[-1].rounds / 4]
    if len({samples[place].rounds for place in warm}) < 2:
        raise BenchmarkError("too few rounds to tell how memory grows: give more --rounds")
    fitted = np.polyfit([samples[place].rounds / 1000 for place in warm], [values[place] for place in warm], 1)
    return float(fitted[0])


def main() -> int:
    """Hold the rounds, and say what came of them; 1 where something was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2000, help="rounds that are committed (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the devices' luck (%(default)s)")
    options = parser.parse_args()
    try:
        samples, wrong = uvloop.run(soak(options.rounds, options.seed))
        memory, database = (
            slope(samples, [getattr(sample, name) for sample in samples]) for name in ("memory", "database")
        )
    except BenchmarkError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    print(f"in 1000 rounds: memory {memory:+.2f} MB, database {database:+.2f} MB")
    for line in wrong:
        print(line)
    print(f"{len(wrong)} disagreements between the devices and the server")
    return int(bool(wrong) or memory > LARGEST_SLOPE)


if __name__ == "__main__":
    sys.exit(main())
