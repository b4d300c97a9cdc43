"""A server that is killed at random instants, over and over, while real devices train in its rounds.

What devices were told counts: every report that was acknowledged has to be in its round, once, every version has to be
made once, and the weights have to be those of a run that nothing disturbs, bit for bit.
"""

from __future__ import annotations

import json
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.exported import exported
from benchmarks.turns import ROOT
from device_runtime.bundle import Bundle, open_bundle
from device_runtime.transport import Caller, RetryPolicy, Transport
from tff_sim import datasets
from tff_sim.child_process import dies_with_parent
from tff_sim.partition import partition

_STARTS_WITHIN = 120.0
_ENDS_WITHIN = 300.0
_LONGEST_LIFE = 1.0  # seconds, of a server that is killed, from when devices have found it
_LONGEST_START = 3.0  # seconds, of one that is killed before it listens
_TOO_EARLY = 0.2  # share of kills that come while a server starts
_PAGE = 1000
_TASK = (
    *("--over-selection", "1", "--codec", "q8", "--downlink", "q8", "--seed", "9", "--lr", "0.1"),
    *("--batch-size", "10", "--epochs", "2", "--retry-seconds", "0.1", "--open-enrolment"),
    *("--selection-timeout", "600", "--reporting-timeout", "600"),
)


@dataclass
class Account:
    """What came of it.

    Attributes:
        kills: by what the server was at.
        devices: that trained, all of them in every round.
        rounds: that were committed.
        reports: that devices were told to be counted.
        seconds: of the run that was disturbed.
        losses: mean loss of the first and of the last round.
        faults: what was wrong, a line each.
    """

    kills: Counter[str] = field(default_factory=Counter)
    devices: int = 0
    rounds: int = 0
    reports: int = 0
    seconds: float = 0.0
    losses: tuple[float, float] = (0.0, 0.0)
    faults: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"kills": dict(self.kills.most_common()), "killed": self.kills.total()}


def kill_servers(
    kills: int, devices: int, seed: int, progress: Callable[[int, str], None] = lambda done, figures: None
) -> Account:
    """Kill a server of `digits_mlp` so many times, let its devices finish, and hold all against an undisturbed run.

    Args:
        kills: how many.
        devices: how many take part; each round wants the reports of all.
        seed: of the instants.
        progress: told how many kills there were, and what goes on.

    Raises:
        BenchmarkError: server or devices do not do what they should at all.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        progress(0, "exporting digits_mlp")
        bundle = open_bundle(exported("digits_mlp", folder)[0])
        shards = partition(datasets.load("digits").train, "iid", devices, seed=0)
        for index, (_, examples) in enumerate(shards.items()):
            np.savez(folder / f"device-{index}.npz", x=examples.x, y=examples.y)
        account = Account(devices=devices)
        began = time.monotonic()
        disturbed = _Fleet(bundle, folder, folder / "disturbed", devices)
        rounds = disturbed.run(random.Random(seed), kills, None, account, progress)  # noqa: S311
        account.seconds = time.monotonic() - began
        progress(kills, f"{rounds} rounds again, undisturbed")
        undisturbed = _Fleet(bundle, folder, folder / "undisturbed", devices)
        undisturbed.run(random.Random(seed), 0, rounds, account, progress)  # noqa: S311
        _compare(disturbed, undisturbed, account)
        return account


class _Fleet:
    """A server and its devices, in a folder of their own."""

    def __init__(self, bundle: Bundle, data: Path, folder: Path, devices: int) -> None:
        folder.mkdir()
        self.folder = folder
        self._bundle = bundle
        self._data = data
        self._devices = devices
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = int(free.getsockname()[1])
        self.history: list[dict[str, Any]] = []

    def run(
        self,
        rng: random.Random,
        kills: int,
        rounds: int | None,
        account: Account,
        progress: Callable[[int, str], None],
    ) -> int:
        """Let all devices train, for as many rounds or as long as there are kills; the number of rounds."""
        with ExitStack() as stack:
            processes = [stack.enter_context(self._device(index)) for index in range(self._devices)]
            for kill in range(kills):
                early = rng.random() < _TOO_EARLY
                with self._server(None, not early):
                    if not early:
                        self._await_reports()
                    time.sleep(rng.uniform(0.0, _LONGEST_START if early else _LONGEST_LIFE))
                account.kills["its start" if early else self._phase(account)] += 1
                progress(kill + 1, f"{len(account.faults)} faults")
            with self._server(rounds or self._version() + 2, True):
                until = time.monotonic() + _ENDS_WITHIN + (rounds or 0)
                for process in processes:
                    try:
                        code = process.wait(max(until - time.monotonic(), 0.1))
                    except subprocess.TimeoutExpired:
                        raise BenchmarkError("the devices do not come to their end") from None
                    if code:
                        raise BenchmarkError(f"a device ended with code {code}: {self._last_words()}")
                self._learn()
                return sum(record["outcome"] == "committed" for record in self.history)

    def acknowledged(self, index: int) -> Counter[int]:
        """By round, how often a device was told that its report counts."""
        lines = (self.folder / f"device-{index}.log").read_text().splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{")]
        return Counter(event["round"] for event in events if event["event"] == "reported")

    @property
    def left(self) -> list[str]:
        """Reports on the disk."""
        return [str(path.relative_to(self.folder)) for path in self.folder.glob("spool/round-*")]

    @contextmanager
    def _server(self, rounds: int | None, listening: bool) -> Iterator[None]:
        """A server that is killed at the end of the context."""
        command = [sys.executable, "-m", "cli.main", "serve", str(self._bundle.path), *_TASK]
        command += ["--goal", str(self._devices), "--minimum", str(self._devices), "--port", str(self._port)]
        command += ["--db", f"sqlite:///{self.folder / 'server.db'}", "--spool", str(self.folder / "spool")]
        command += ["--keys", str(self.folder), *([] if rounds is None else ["--rounds", str(rounds)])]
        log = self.folder / "server.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                dies_with_parent(command), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            until = time.monotonic() + _STARTS_WITHIN
            while listening and "listening on" not in log.read_text():
                if process.poll() is not None or time.monotonic() > until:
                    raise BenchmarkError(f"the server does not start: {log.read_text().strip()}")
                time.sleep(0.02)
            yield
            if process.poll() is not None:
                raise BenchmarkError(f"the server ended by itself: {log.read_text().strip()}")
        finally:
            process.kill()
            process.wait()

    @contextmanager
    def _device(self, index: int) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "device_runtime.cli", "run", "--server", f"http://127.0.0.1:{self._port}"]
        command += ["--population", self._bundle.manifest.name, "--client", f"device-{index}", "--log-json"]
        command += ["--data", str(self._data / f"device-{index}.npz"), "--cache", str(self.folder / f"cache-{index}")]
        command += ["--attempts", "1000", "--retry-seconds", "0.1"]
        with (self.folder / f"device-{index}.log").open("w") as output:
            process = subprocess.Popen(
                dies_with_parent(command), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def _phase(self, account: Account) -> str:
        """What the server was at; and whether all that it acknowledged is on the disk."""
        with self._copy() as database:
            found = database.execute(
                "SELECT id, phase, reported FROM rounds WHERE phase NOT IN ('committed', 'abandoned')"
            ).fetchone()
            if found is None:
                return "no round"
            counted = database.execute(
                "SELECT segment, place, length FROM participants WHERE round_id = ? AND reported", [found[0]]
            ).fetchall()
            if len(counted) != found[2]:
                account.faults.append(f"round {found[0]} has {found[2]} reports, and {len(counted)} devices reported")
            for segment, place, length in counted:
                path = self.folder / "spool" / f"round-{found[0]}" / segment
                if not path.exists() or path.stat().st_size < place + length:
                    account.faults.append(f"round {found[0]}: a report that counts is not on the disk")
            return str(found[1]) if found[1] != "reporting" else f"reporting, {found[2]} of {self._devices} reports"

    def _version(self) -> int:
        with self._copy() as database:
            return int(database.execute("SELECT number FROM fleet").fetchone()[0])

    @contextmanager
    def _copy(self) -> Iterator[sqlite3.Connection]:
        """The database as the kill left it; reading it would already tidy it up, which is the next server's part."""
        with tempfile.TemporaryDirectory() as folder:
            for path in self.folder.glob("server.db*"):
                shutil.copy(path, folder)
            with closing(sqlite3.connect(Path(folder) / "server.db")) as database:
                yield database

    def _await_reports(self) -> None:
        """Wait until the devices, which come back one after the other, have brought a running server further."""
        first, until = None, time.monotonic() + _ENDS_WITHIN
        while time.monotonic() < until:
            status = self._asked("/v1/status")
            now = (status["committed_rounds"], status["reports"])
            first = first or now
            if now != first:
                return
            time.sleep(0.02)
        raise BenchmarkError(f"the devices do not come back: {self._last_words()}")

    def _asked(self, path: str) -> Any:
        """What a running server answers to a viewer."""
        caller = Caller("viewer", (self.folder / "viewer.key").read_text().strip())
        server = Transport(f"http://127.0.0.1:{self._port}", retry=RetryPolicy(3), caller=caller)
        return json.loads(server.request("GET", path, limit=1 << 26).body)

    def _learn(self) -> None:
        """The history of a server that runs."""
        before = ""
        while True:
            page: list[dict[str, Any]] = self._asked(f"/v1/rounds?limit={_PAGE}{before}")
            self.history = page + self.history
            if len(page) < _PAGE:
                return
            before = f"&before={page[0]['id']}"

    def _last_words(self) -> str:
        logs = [self.folder / f"device-{index}.log" for index in range(self._devices)]
        return " / ".join((path.read_text().splitlines() or ["nothing"])[-1] for path in logs)


def _compare(disturbed: _Fleet, undisturbed: _Fleet, account: Account) -> None:
    faults, devices = account.faults, range(account.devices)
    told: Counter[int] = Counter()
    for index in devices:
        acknowledged = disturbed.acknowledged(index)
        told += acknowledged
        faults += [
            f"device {index}: {times} acknowledgements in round {number}"
            for number, times in acknowledged.items()
            if times > 1
        ]
    account.reports = told.total()
    account.rounds = len(disturbed.history)
    account.losses = (disturbed.history[0]["loss"], disturbed.history[-1]["loss"])
    for place, record in enumerate(disturbed.history, 1):
        number = record["number"]
        if (number, record["outcome"]) != (place, "committed"):
            faults.append(f"round {place} is {record['outcome']} with the number {number}")
        added, counted = record["clients"], record["counts"]["reported"]
        if not added == counted == told[number] == account.devices:
            faults.append(
                f"round {number}: {told[number]} reports were acknowledged, {counted} counted, {added} added up, of"
                f" {account.devices} devices"
            )
    mine, theirs = ([record["weights"] for record in fleet.history] for fleet in (disturbed, undisturbed))
    if mine != theirs:
        different = next(
            (n for n, pair in enumerate(zip(mine, theirs, strict=False), 1) if pair[0] != pair[1]), len(mine)
        )
        faults.append(f"the weights after round {different} are others than those of the undisturbed run")
    if disturbed.left:
        faults.append(f"reports outlived their rounds: {', '.join(disturbed.left)}")


def table_of(account: Account) -> list[tuple[str, str]]:
    """What came of it, for a person to read."""
    return [
        ("kills", str(account.kills.total())),
        *((f"  during {phase}", str(count)) for phase, count in account.kills.most_common()),
        ("devices", str(account.devices)),
        ("rounds committed", str(account.rounds)),
        ("reports acknowledged", str(account.reports)),
        ("loss, first and last round", f"{account.losses[0]:.3f}, {account.losses[1]:.3f}"),
        ("seconds", f"{account.seconds:.0f}"),
        ("faults", str(len(account.faults))),
    ]
