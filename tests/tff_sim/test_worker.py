"""TFF's worker process ends with the block, with its parent, and with Ctrl-C."""

from __future__ import annotations

import csv
import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_federated as tff

from device_runtime.errors import NetworkError
from tff_sim import local_worker
from tff_sim.workers import connection, local, process

TIMEOUT = 600.0

HOLD_A_WORKER = """
import sys
from tff_sim import local_worker
from tff_sim.workers import local, process
with local_worker():
    print("up", flush=True)
    sys.stdin.read()
"""


# Whoever runs the tests in a shell's background passes on that SIGINT is to be ignored. (A preexec_fn would fork
# with gRPC's threads running.)
HEED_SIGINT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def _wait_until(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def _start(arguments: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        [sys.executable, "-c", HEED_SIGINT, sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.parametrize("error", [None, RuntimeError("in the block")])
def test_no_worker_is_left_after_the_block(
    error: Exception | None, workers_of: Callable[[int], set[int]], running_worker: Callable[[int], bool]
) -> None:
    before = workers_of(os.getpid())
    caught: Exception | None = None
    try:
        with local_worker():
            (mine,) = workers_of(os.getpid()) - before
            assert running_worker(mine)
            if error is not None:
                raise error
    except RuntimeError as raised:
        caught = raised
    assert caught is error
    assert not running_worker(mine)
    assert workers_of(os.getpid()) == before


def test_computations_run_in_the_worker_and_the_context_is_restored() -> None:
    @tff.tensorflow.computation
    def answer() -> int:
        return 42

    stack = tff.framework.get_context_stack()
    outside = stack.current
    with local_worker():
        assert stack.current is not outside
        assert answer() == 42
    assert stack.current is outside


@pytest.fixture
def fake_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`fake_worker(script)`: a shell script in the place of TFF's program."""

    def install(script: str) -> None:
        program = tmp_path / "data" / "worker_binary"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(process, "worker_program", lambda: program)

    return install


def test_a_worker_that_ends_as_it_starts_is_reported(fake_worker: Callable[[str], None]) -> None:
    fake_worker("exit 7")
    with pytest.raises(NetworkError) as caught, local_worker():
        pass
    assert str(caught.value) == "TFF's worker process ended with code 7 as it started"


def test_a_worker_that_does_not_answer_is_reported_and_ended(
    fake_worker: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, workers_of: Callable[[int], set[int]]
) -> None:
    before = workers_of(os.getpid())
    fake_worker("exec sleep 600")
    monkeypatch.setattr(local, "_START_SECONDS", 1.0)
    with pytest.raises(NetworkError) as caught, local_worker():
        pass
    assert str(caught.value) == "TFF's worker process did not answer within 1 seconds"
    assert workers_of(os.getpid()) == before


def test_the_worker_dies_with_a_parent_that_is_killed(
    workers_of: Callable[[int], set[int]], running_worker: Callable[[int], bool]
) -> None:
    parent = _start(["-c", HOLD_A_WORKER])
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        (child,) = workers_of(parent.pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait(TIMEOUT)
        assert _wait_until(lambda: not running_worker(child))
    finally:
        _stop(parent)


def test_a_worker_that_is_killed_ends_the_run_in_one_line(
    tmp_path: Path, workers_of: Callable[[int], set[int]]
) -> None:
    run = _start(["-m", "cli.main", "simulate", "--clients", "20", "--rounds", "10000", "--out", str(tmp_path)])
    watchdog = threading.Timer(TIMEOUT, run.kill)
    watchdog.start()
    try:
        assert run.stderr is not None
        assert re.match(r"simulating 1/10000  loss \d", run.stderr.readline())
        (child,) = workers_of(run.pid)
        os.kill(child, signal.SIGKILL)
        _, stderr = run.communicate(timeout=TIMEOUT)
    finally:
        watchdog.cancel()
        _stop(run)
    assert run.returncode == 3
    last = stderr.splitlines()[-1]
    assert last == "pocketfed: TFF's worker process ended with code -9; was the memory used up?"


def test_ctrl_c_ends_the_run_in_one_line_and_keeps_the_finished_rounds(
    tmp_path: Path, workers_of: Callable[[int], set[int]], running_worker: Callable[[int], bool]
) -> None:
    out = tmp_path / "run"
    arguments = ["--clients", "20", "--fraction", "0.1", "--rounds", "10000", "--out", str(out)]
    run = _start(["-m", "cli.main", "simulate", *arguments])
    watchdog = threading.Timer(TIMEOUT, run.kill)  # else a run that never speaks would hold the tests for ever
    watchdog.start()
    try:
        assert run.stderr is not None
        assert re.match(r"simulating 1/10000  loss \d", run.stderr.readline())
        (child,) = workers_of(run.pid)
        run.send_signal(signal.SIGINT)
        stdout, stderr = run.communicate(timeout=TIMEOUT)
    finally:
        watchdog.cancel()
        _stop(run)
    *progress, last = filter(None, stderr.splitlines())  # click ends the line on which a terminal shows ^C
    assert run.returncode == 130
    assert last == "pocketfed: interrupted"
    assert [line for line in progress if not re.match(r"simulating \d+/10000  loss ", line)] == []
    assert stdout == ""
    assert not running_worker(child)

    with (out / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["round"]) for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) - (1 + len(progress)) in (0, 1)  # the signal may fall between a row and its line
    assert all(None not in row.values() for row in rows)
    assert (out / "weights.safetensors").is_file()
    assert not (out / "summary.json").exists()


@tff.tensorflow.computation(np.int32)
def _doubled(value: Any) -> Any:
    return value * 2


@tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))
def _sum_of_doubled(values: Any) -> Any:
    return tff.federated_sum(tff.federated_map(_doubled, values))


def _adding(number: int) -> Any:
    @tff.tensorflow.computation(np.int32)
    def add(value: Any) -> Any:
        return value + number

    return add


def test_a_computation_is_sent_once_for_each_number_of_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = list[int]()
    create_value = connection._Stub.create_value

    def watch(self: Any, request: Any) -> Any:
        sent.append(request.value.WhichOneof("value") == "computation")
        return create_value(self, request)

    monkeypatch.setattr(connection._Stub, "create_value", watch)
    with local_worker():
        assert [_sum_of_doubled([1, 2]), _sum_of_doubled([3, 4]), _sum_of_doubled([5])] == [6, 14, 10]
    # Each round's clients, and the computation only before a number of clients comes up for the first time.
    assert sent == [False, True, False, False, True]


def test_more_computations_and_numbers_of_clients_than_are_kept() -> None:
    computations = [_adding(number) for number in range(connection._COMPUTATIONS + 4)]
    with local_worker():
        for _ in range(2):
            assert [add(1) for add in computations] == list(range(1, len(computations) + 1))
        for clients in (*range(1, connection._EXECUTORS + 4), 1):
            assert _sum_of_doubled([1] * clients) == 2 * clients


def test_nothing_of_a_worker_is_left_in_the_process_that_used_it() -> None:
    def executors() -> int:
        gc.collect()
        return sum(isinstance(thing, connection._Executor) for thing in gc.get_objects())

    before = executors()
    with local_worker():
        assert _sum_of_doubled([1, 2]) == 6
        assert executors() == before + 1
    assert executors() == before


@pytest.mark.parametrize(("clients", "threads"), [(1, 2), (2, 1), (3, 1), (1000, 1)])
def test_all_cores_are_shared_among_the_clients(clients: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert process.threads_for(clients) == threads


def test_a_worker_trains_each_client_on_so_many_threads(workers_of: Callable[[int], set[int]]) -> None:
    before = workers_of(os.getpid())
    with local_worker(threads=3):
        (mine,) = workers_of(os.getpid()) - before
        assert b"TF_NUM_INTRAOP_THREADS=3" in Path(f"/proc/{mine}/environ").read_bytes().split(b"\0")
