"""TFF's worker program as a child process that one socket leads to (`tff_sim.workers.enclosure`)."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tff_sim.workers import enclosure

_STOP_SECONDS = 5.0
# By default glibc gives the memory of every large tensor back to the kernel and faults it in again at the next
# step; on virtual machines those faults cost more than the arithmetic.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    # Part of each arena is never given back, and no more than one thread a core allocates at a time.
    "MALLOC_ARENA_MAX": str(len(os.sched_getaffinity(0))),
}


def threads_for(clients: int) -> int:
    """How many threads each of so many clients should be trained on, for all cores of this machine to be at work.

    They are trained side by side. Were each also split over all cores, it would wait for threads more than it gains.
    """
    return max(len(os.sched_getaffinity(0)) // clients, 1)


@contextlib.contextmanager
def worker_process(listener: socket.socket, threads: int) -> Iterator[tuple[subprocess.Popen[str], str | None]]:
    """A worker that serves what connects to a listening socket, for the time of the `with` block.

    Does not import TensorFlow Federated. Yields the process, and a warning of one line where the system permits no
    network namespace, so that the worker is open to the network; None where nothing but the socket leads to it.

    Args:
        listener: the socket.
        threads: of each client's training, whose last bits can depend on it.
    """
    port = free_port()
    program = [str(worker_program()), f"--port={port}"]
    # No parent's files, and no terminal signals: Ctrl-C reaches the parent, which ends the worker.
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", enclosure.__file__, str(listener.fileno()), str(port), *program],
        pass_fds=[listener.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **_KEEP_MEMORY, "TF_NUM_INTRAOP_THREADS": str(threads)},
        start_new_session=True,
        text=True,
    )
    try:
        assert process.stdout is not None
        answer = process.stdout.readline().strip()
        process.stdout.close()
        yield process, None if answer == enclosure.ENCLOSED else _warning(answer, port)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def worker_program() -> Path:
    """TFF's program, which comes with its wheel."""
    package = importlib.util.find_spec("tensorflow_federated")
    assert package is not None and package.origin is not None
    return Path(package.origin).parent / "data" / "worker_binary"


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _warning(reason: str, port: int) -> str:
    return (
        f"warning: no network namespace for TFF's worker ({reason}): it listens on all addresses of this machine,"
        f" port {port}, without authentication"
    )
