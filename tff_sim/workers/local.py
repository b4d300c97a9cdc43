"""TFF's computations in a worker process on this machine: started here, and ended here, whatever happens.

TFF would start the same program by itself, but leaves it running when its parent is killed and waits for
it without a time limit. So it is started under a context manager, and dies with its parent. Nobody else can
reach it: a UNIX socket in a folder of this user leads to it, and nothing else does.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_federated as tff

from device_runtime.errors import NetworkError
from tff_sim.workers.connection import WorkerConnection
from tff_sim.workers.notices import Notice, to_stderr
from tff_sim.workers.process import worker_process

OPEN_WORKER = "POCKETFED_OPEN_WORKER"
"""Name of the environment variable that says: a worker that is open to the network is no news."""
_START_SECONDS = 60.0
_EXIT_SECONDS = 5.0
_LONGEST_SOCKET_PATH = 100  # the system allows 107 bytes


@contextlib.contextmanager
def local_worker(notice: Notice = to_stderr, threads: int = 1) -> Iterator[None]:
    """Run TFF's computations in a worker process of their own for the time of the `with` block.

    Args:
        notice: told, in a line, where the system can't keep the worker from the network.
        threads: of each client's training; clients are trained side by side (`tff_sim.workers.process.threads_for`).

    Raises:
        NetworkError: the worker did not start within a minute, or it ended in the middle of the work.
    """
    with local_context(notice, threads) as context, tff.framework.get_context_stack().install(context):
        yield


@contextlib.contextmanager
def local_context(notice: Notice, threads: int = 1) -> Iterator[Any]:
    """The TFF context of `local_worker`, without making it the current one."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pocketfed-", dir=_short_folder()))
        path = Path(folder) / "worker"
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen()
        process, warning = stack.enter_context(worker_process(listener, threads))
        if warning is not None and not os.environ.get(OPEN_WORKER):
            notice(warning)
        connection = WorkerConnection(f"unix:{path}", lost=lambda reason: _ended(process, reason))
        stack.callback(connection.abandon)
        _wait_until_ready(connection, process)
        yield connection.context


def _wait_until_ready(connection: WorkerConnection, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + _START_SECONDS
    while not connection.is_ready:
        if process.poll() is not None:
            raise NetworkError(f"TFF's worker process ended with code {process.returncode} as it started")
        if time.monotonic() > end:
            raise NetworkError(f"TFF's worker process did not answer within {_START_SECONDS:.0f} seconds")
        time.sleep(0.05)


def _ended(process: subprocess.Popen[str], reason: str) -> str:
    try:
        # The connection breaks off a moment before the process is gone.
        code = process.wait(_EXIT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"TFF's worker process is lost: {reason}"
    return f"TFF's worker process ended with code {code}; was the memory used up?"


def _short_folder() -> str | None:
    if len(tempfile.gettempdir()) <= _LONGEST_SOCKET_PATH - len("/pocketfed-12345678/worker"):
        return None
    return "/tmp"  # noqa: S108  a folder that only this user may enter is made there
