"""Rounds over one and over two workers of TensorFlow Federated, each on a core of its own, and what travels in a round.

A tenth of McMahan et al. 2017's 100 clients with 600 examples each, E = 1, B = 10; the pixels are random, which changes
nothing of the time. With one core a worker, two of them can at best halve the time of a round; how near they come is
the efficiency. Both sides are measured in this run, by turns. Processor seconds, of the simulation and of the worker
that takes most of them, tell how near they would come on a machine that does nothing else.

    python -m benchmarks.workers --model mnist_2nn --turns 5
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import models
from benchmarks.errors import BenchmarkError
from device_runtime.examples import Examples
from device_runtime.work import ClientWork
from tff_sim.child_process import dies_with_parent
from tff_sim.workers.addresses import Address, Workers, parse_address

CLIENTS, EXAMPLES, ROUNDS = 10, 600, 4


@contextlib.contextmanager
def worker_on_core(core: int) -> Iterator[tuple[Address, int]]:
    """``pocketfed worker`` on a free port, with one core to compute on; its process id."""
    command = ["taskset", "-c", str(core), str(Path(sys.executable).with_name("pocketfed")), "worker", "--port", "0"]
    process = subprocess.Popen(
        dies_with_parent(["/usr/bin/env", *command]), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("listening on "):
            raise BenchmarkError("'pocketfed worker' did not start")
        yield parse_address(line.split()[-1]), process.pid
    finally:
        process.terminate()
        process.wait()


def processor_seconds(pid: int) -> float:
    """Of a process and of all that descend from it and live."""
    folder = Path(f"/proc/{pid}")
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    children = [child for path in folder.glob("task/*/children") for child in path.read_text().split()]
    return own + sum(processor_seconds(int(child)) for child in children)


@dataclass
class Measured:
    """Of each round: seconds, processor seconds of the simulation and of each worker, bytes to and from each."""

    seconds: list[float] = field(default_factory=list)
    simulation: list[float] = field(default_factory=list)
    workers: list[list[float]] = field(default_factory=list)
    traffic: list[list[tuple[int, int]]] = field(default_factory=list)

    def critical_seconds(self) -> float:
        """Processor seconds that follow on each other: the simulation's, and those of the worker that takes most."""
        return median(mine + max(theirs) for mine, theirs in zip(self.simulation, self.workers, strict=True))


class Meter:
    """Counts the bytes of the connections to a worker that go through `address`."""

    def __init__(self, worker: Address) -> None:
        self.sent = 0
        self.received = 0
        self._worker = worker
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            outer, _ = self._server.accept()
            inner = socket.create_connection((self._worker.host, self._worker.port))
            threading.Thread(target=self._pass_on, args=(outer, inner, "sent"), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(inner, outer, "received"), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, counter: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                setattr(self, counter, getattr(self, counter) + len(data))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


class Rounds:
    """Rounds of one model, on whichever workers."""

    def __init__(self, model: str) -> None:
        from tff_sim.algorithms.fed_avg import build_fed_avg
        from tff_sim.engines.engine import ClientTask, ProcessEngine

        spec = models.get(model)
        self._work = ClientWork(epochs=1, batch_size=10)
        self._engine = ProcessEngine(build_fed_avg(spec, self._work, models.initial_weights(spec, 0)))
        rng = np.random.default_rng(0)
        shape = (EXAMPLES, *spec.input.shape[1:])
        self._tasks = [
            ClientTask(
                f"client-{number}",
                Examples(rng.random(shape, np.float32), rng.integers(0, 10, EXAMPLES).astype(np.int32)),
                number,
            )
            for number in range(CLIENTS)
        ]

    def measure(
        self, result: Measured, workers: Sequence[Address], pids: Sequence[int], others: Sequence[int] = (),
        meters: Sequence[Meter] = (),
    ) -> None:  # fmt: skip
        """Add all rounds but the first, in which the workers load the computation."""
        from tff_sim.workers.remote import remote_workers

        def clocks() -> tuple[float, list[float]]:
            theirs = [processor_seconds(pid) for pid in pids]
            idle = sum(processor_seconds(pid) for pid in others)
            return processor_seconds(os.getpid()) - sum(theirs) - idle, theirs

        with remote_workers(Workers(tuple(workers), 300.0)):
            state = self._engine.initialize()
            for number in range(ROUNDS):
                counts = [(meter.sent, meter.received) for meter in meters]
                mine, theirs = clocks()
                started = time.perf_counter()
                state = self._engine.round(state, self._work, self._tasks).state
                seconds = time.perf_counter() - started
                mine_after, theirs_after = clocks()
                if number == 0:
                    continue
                result.seconds.append(seconds)
                result.simulation.append(mine_after - mine)
                result.workers.append([after - before for before, after in zip(theirs, theirs_after, strict=True)])
                result.traffic.append(
                    [(m.sent - sent, m.received - got) for m, (sent, got) in zip(meters, counts, strict=True)]
                )


def measure(model: str, turns: int) -> dict[str, Any]:
    """Medians of seconds a round, the efficiencies, and bytes a round and worker."""
    rounds, one, two, metered = Rounds(model), Measured(), Measured(), Measured()
    with worker_on_core(0) as (first, first_pid), worker_on_core(1) as (second, second_pid):
        meters = [Meter(first), Meter(second)]
        pids = [first_pid, second_pid]
        rounds.measure(metered, [meter.address for meter in meters], pids, meters=meters)
        for _ in range(turns):
            rounds.measure(one, [first], [first_pid], others=[second_pid])
            rounds.measure(two, [first, second], pids)
    return {
        "model": model,
        "seconds_one_worker": median(one.seconds),
        "seconds_two_workers": median(two.seconds),
        "efficiency": median(one.seconds) / median(two.seconds) / 2,
        "processor_seconds_simulation": median(two.simulation),
        "processor_seconds_of_one_worker": median(max(each) for each in one.workers),
        "processor_seconds_of_each_of_two": median(max(each) for each in two.workers),
        "processor_efficiency": one.critical_seconds() / two.critical_seconds() / 2,
        "bytes_to_and_from_each_worker": metered.traffic[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mnist_2nn")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.model, arguments.turns), indent=2))


if __name__ == "__main__":
    main()
