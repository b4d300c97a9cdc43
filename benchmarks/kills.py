"""A device that is killed at random instants, over and over, while it takes part in a real server's rounds.

After each kill its state has to be readable. The update that a round gets in the end has to be, byte for byte, the one
of a device that nothing disturbs, and every round has to get it once.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.proxy import proxy
from benchmarks.turns import ROOT
from device_runtime.bundle import Bundle
from device_runtime.codec import encode
from device_runtime.examples import Examples
from device_runtime.messages import REPORT, STATUS, weights_path
from device_runtime.sealed import open_sealed
from device_runtime.tensors import Weights
from device_runtime.trainer import Trainer
from device_runtime.transport import Caller, RetryPolicy, Transport
from device_runtime.weights import load_weights
from device_runtime.work import ClientWork, client_seed
from tff_sim.child_process import dies_with_parent

CLIENT = "device"
SEED = 9  # of the task, as in benchmarks.sides.serving
_LONGEST_LIFE = 120.0
_TOLD = 25
_SEALED = ("progress", "update", "given-up")


@dataclass
class Account:
    """What came of it.

    Attributes:
        kills: by what the device had told of last.
        rounds: that were committed.
        restored: trainings that went on from their progress, and the steps that were not taken again.
        found: updates that were sent by another process than the one that made them.
        faults: what was wrong, a line each.
    """

    kills: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    restored: int = 0
    steps_kept: int = 0
    found: int = 0
    duplicates: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        where = ", ".join(f"{count} after {event}" for event, count in self.kills.most_common())
        return (
            f"{self.kills.total()} kills ({where}) in {self.rounds} rounds and {self.seconds:.0f} s; {self.restored}"
            f" trainings went on ({self.steps_kept} steps kept), {self.found} updates were found and sent,"
            f" {self.duplicates} of them had been counted already; {len(self.faults)} faults"
        )


def kill_devices(
    bundle: Bundle, examples: Examples, work: ClientWork, kills: int, seed: int, progress: Callable[[int, str], None]
) -> Account:
    """Kill a device so many times, then let it finish its round.

    Args:
        bundle: what it trains.
        examples: its own.
        work: of each round; its seed is the round's own.
        kills: how many.
        seed: of the instants.
        progress: told now and then how many there were.

    Raises:
        BenchmarkError: server or device do not do what they should at all.
    """
    with tempfile.TemporaryDirectory() as name, serving(bundle, Path(name), work) as url:
        instants = random.Random(seed)  # noqa: S311
        return _Run(bundle, examples, work, Path(name), url, instants).go(kills, progress)


class _Run:
    def __init__(
        self, bundle: Bundle, examples: Examples, work: ClientWork, folder: Path, url: str, rng: random.Random
    ) -> None:
        self._bundle = bundle
        self._examples = examples
        self._work = work
        self._folder = folder
        self._url = url
        self._rng = rng
        self._account = Account()
        self._server = Transport(url, retry=RetryPolicy(3), caller=viewer(folder))
        self._reports: list[bytes] = []
        self._life: subprocess.Popen[str] | None = None
        self._at = ""  # of a report's way: where the device is to be killed
        np.savez(folder / "examples.npz", x=examples.x, y=examples.y)

    def go(self, kills: int, progress: Callable[[int, str], None]) -> Account:
        began = time.monotonic()
        with proxy(lambda: self._url, self._before, self._after) as url:
            while self._account.kills.total() < kills:
                self._live(url, killed=True)
                if self._account.kills.total() % _TOLD == 0:
                    progress(self._account.kills.total(), f"{len(self._account.faults)} faults")
            self._live(url, killed=False)
        self._check_rounds()
        self._account.seconds = time.monotonic() - began
        return self._account

    def _live(self, url: str, killed: bool) -> None:
        """A process of the device, until it is killed, or has had one more report accepted."""
        command = [sys.executable, "-m", "device_runtime.cli", "run", "--server", url, "--client", CLIENT]
        command += ["--population", self._bundle.manifest.name, "--data", str(self._folder / "examples.npz")]
        command += ["--cache", str(self._folder / "cache"), "--save-every", "1", "--save-seconds", "0.02"]
        command += ["--log-json", "--retry-seconds", "0.05", *([] if killed else ["--rounds", "1"])]
        # Some instants are rare and matter: those are aimed at.
        self._at = self._rng.choice(["", "", "", "before", "after"]) if killed else ""
        process = subprocess.Popen(
            dies_with_parent(command),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._life = process
        delay = _LONGEST_LIFE if not killed or self._at else self._rng.uniform(0.0, 2.5)
        timer = threading.Timer(delay, process.kill)
        timer.start()
        assert process.stdout is not None
        last = "its start"
        with process.stdout:
            for line in process.stdout:
                last = self._listen(line) or last
        code = process.wait()
        timer.cancel()
        if killed and code == -signal.SIGKILL:
            self._account.kills[f"{last}, report {self._at} the server" if self._at else last] += 1
        elif killed or code != 0:
            raise BenchmarkError(f"the device ended with code {code}; it said {last!r} at last")
        self._check_state()

    def _listen(self, line: str) -> str:
        try:
            event: dict[str, Any] = json.loads(line)
        except ValueError:  # cut off by the kill, or no event: then the code says more
            return line.strip()
        if event["event"] == "progress_restored":
            self._account.restored += 1
            self._account.steps_kept += event["steps"]
        self._account.found += event["event"] == "update_found"
        return str(event["event"])

    def _before(self, path: str, body: bytes) -> bool:
        if path == REPORT:
            self._reports.append(body)
            return not self._kill_at("before")
        return True

    def _after(self, path: str, answer: bytes) -> bool:
        if path == REPORT:
            self._account.duplicates += json.loads(answer)["reason"] == "duplicate"
            return not self._kill_at("after")
        return True

    def _kill_at(self, place: str) -> bool:
        if self._at != place or self._life is None:
            return False
        self._life.kill()
        return True

    def _check_state(self) -> None:
        for folder in (self._folder / "cache" / "rounds").glob("*"):
            for name in _SEALED:
                if (folder / name).exists():
                    sealed = open_sealed(folder / name)
                    if sealed is None:
                        self._account.faults.append(f"{name} is damaged after kill {self._account.kills.total()}")
                    else:
                        sealed.__exit__()

    def _check_rounds(self) -> None:
        status = json.loads(self._server.request("GET", STATUS).body)
        faults, tensors = self._account.faults, self._bundle.manifest.tensors
        weights = self._bundle.initial_weights()
        expected: dict[bytes, int] = {}
        for entry in status["history"]:
            number = entry["number"]
            if (entry["outcome"], entry["clients"], entry["counts"]["reported"]) != ("committed", 1, 1):
                faults.append(f"round {number}: {entry}")
            update = self._undisturbed(weights, number)
            expected[update] = number
            if update not in self._reports:
                faults.append(f"round {number}: its update was not the undisturbed one")
            weights = load_weights(
                self._server.request("GET", weights_path(entry["weights"]), limit=1 << 30).body, tensors
            )
        numbers = [entry["number"] for entry in status["history"]]
        if numbers != list(range(1, len(numbers) + 1)):
            faults.append(f"rounds {numbers}")
        wrong = sum(report not in expected for report in self._reports)
        if wrong:
            faults.append(f"{wrong} reports were not the undisturbed update of any round")
        self._account.rounds = len(numbers)

    def _undisturbed(self, weights: Weights, number: int) -> bytes:
        manifest, seed = self._bundle.manifest, client_seed(SEED, number, CLIENT)
        work = ClientWork(**{**self._work.to_json(), "seed": seed})
        update = Trainer(self._bundle).train(weights, self._examples, work, number).collect()
        return encode(update, manifest.tensors, manifest.model_id, work.codec, seed)


def viewer(folder: Path) -> Caller:
    """Who may look at what a server in this folder does."""
    return Caller("viewer", (folder / "viewer.key").read_text().strip())


@contextmanager
def serving(bundle: Bundle, folder: Path, work: ClientWork) -> Iterator[str]:
    """A server process with a cohort of one, whose database is in the folder; its URL. It is killed in the end."""
    command = [sys.executable, "-m", "benchmarks.sides.serving", str(bundle.path), str(folder)]
    command.append(json.dumps(work.to_json()))
    with subprocess.Popen(
        dies_with_parent(command), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise BenchmarkError("the server does not start")
            yield url
        finally:
            process.kill()
