"""A population on disk: memory and time of cohorts, against the number of rounds and of clients.

    python -m benchmarks.population                # 2,000 and 200,000 clients; a gigabyte in a temporary folder
    python -m benchmarks.population --rounds 100 --clients 20000

Each client has the embedded digits of one to 39 draws. A process of its own opens the population, and in each round
draws a cohort and reads its examples, as `pocketfed simulate` does; TensorFlow is not loaded, so that what is left is
the population's. The reference holds all examples in memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.errors import BenchmarkError
from device_runtime.examples import Examples
from tff_sim import datasets
from tff_sim.plan import random_cohorts
from tff_sim.population import StoredPopulation, write_population

_SMALL = 2_000
_MARKS = (1, 10, 100, 1_000, 10_000)  # rounds after which memory is looked at
_MEAN = 20


def clients_of_digits(count: int) -> Iterator[tuple[str, Examples]]:
    """Clients with 1 to 39 digits each, drawn with replacement."""
    digits = datasets.load("digits").train
    rng = np.random.default_rng(0)
    for number in range(count):
        drawn = rng.integers(0, len(digits), rng.integers(1, 2 * _MEAN))
        yield f"phone-{number}", Examples(digits.x[drawn], digits.y[drawn])


def measure(folder: Path, rounds: int, cohort: int, in_memory: bool) -> dict[str, Any]:
    """Rounds in this process; seconds, and resident memory in MB of 10⁶ bytes before and after some of them."""
    before = _resident_mb()
    started = time.perf_counter()
    stored = StoredPopulation(folder)
    clients: Mapping[str, Examples] = dict(stored) if in_memory else stored
    opened = time.perf_counter() - started
    plan = random_cohorts(stored.names, cohort / len(stored), seed=0)
    memory, drawing, reading, examples = {0: _resident_mb()}, [], [], 0
    for number in range(1, rounds + 1):
        started = time.perf_counter()
        names = list(plan(number).reports)
        drawn = time.perf_counter()
        examples += sum(len(clients[name]) for name in names)
        reading.append(time.perf_counter() - drawn)
        drawing.append(drawn - started)
        if number in _MARKS or number == rounds:
            memory[number] = _resident_mb()
    return {
        "clients": len(stored),
        "opened": opened,
        "draw_ms": median(drawing) * 1e3,
        "read_ms": median(reading) * 1e3,
        "examples": examples,
        "before_mb": before,
        "memory_mb": memory,
    }


def main() -> None:
    """Write populations, measure each in a process, print a table."""
    parser = argparse.ArgumentParser(description="Memory and time of a population on disk.")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=200_000)
    parser.add_argument("--cohort", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where to write; by default a temporary folder")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--in-memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.rounds, options.cohort, options.in_memory)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for clients in (_SMALL, options.clients):
            folder = Path(name) / str(clients)
            started = time.perf_counter()
            write_population(folder, clients_of_digits(clients))
            seconds = time.perf_counter() - started
            size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
            print(f"{clients:,} clients: {size:,.0f} MB, written in {seconds:.1f} s", flush=True)
            for in_memory in (False, True):
                _print(_child(folder, options, in_memory), in_memory)


def _child(folder: Path, options: argparse.Namespace, in_memory: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.population", "--measure", str(folder)]
    command += ["--rounds", str(options.rounds), "--cohort", str(options.cohort)]
    command += ["--in-memory"] if in_memory else []
    run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if run.returncode:
        raise BenchmarkError(f"a process of the benchmark ended with code {run.returncode}: {run.stderr[-500:]}")
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def _print(found: dict[str, Any], in_memory: bool) -> None:
    memory = "  ".join(f"{rounds}: {mb - found['before_mb']:.1f}" for rounds, mb in found["memory_mb"].items())
    print(
        f"  {'in memory' if in_memory else 'on disk  '}  open {found['opened'] * 1e3:.0f} ms, a round:"
        f" draw {found['draw_ms']:.2f} ms, read {found['read_ms']:.2f} ms; MB more than before, after rounds  {memory}",
        flush=True,
    )


def _resident_mb() -> float:
    """All of the process's memory, mapped files included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise BenchmarkError("/proc/self/status does not say how much memory the process has")


if __name__ == "__main__":
    main()
