"""TFF's worker process: started here, and ended here, whatever happens.

TFF would start the same program by itself, but leaves it running when its parent is killed and waits for
it without a time limit. So it is started under a context manager, and dies with its parent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import tensorflow_federated as tff

from device_runtime.errors import NetworkError
from tff_sim.child_process import dies_with_parent

_START_SECONDS = 60.0
_STOP_SECONDS = 5.0
# By default glibc gives the memory of every large tensor back to the kernel and faults it in again at the next
# step; on virtual machines those faults cost more than the arithmetic.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
_UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


@contextlib.contextmanager
def local_worker() -> Iterator[None]:
    """Run TFF's computations in a worker process of their own for the time of the `with` block.

    Raises:
        NetworkError: the worker did not start within a minute, or it ended in the middle of the work.
    """
    port = _free_port()
    binary = Path(tff.__file__).parent / "data" / "worker_binary"
    # No parent's files, and no terminal signals: Ctrl-C reaches the parent, which ends the worker.
    process = subprocess.Popen(
        dies_with_parent([str(binary), f"--port={port}"]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **_KEEP_MEMORY},
        start_new_session=True,
    )
    try:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=_UNLIMITED)
        stub = tff.framework.RemoteExecutorGrpcStub(channel)
        _wait_until_ready(stub, process)
        context = _execution_context(stub, process)
        with tff.framework.get_context_stack().install(context):
            yield
        channel.close()
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _execution_context(stub: Any, process: subprocess.Popen[bytes]) -> Any:
    def executor(cardinalities: Any) -> Any:
        # Asked for again at each of TFF's retries, which have no end where the worker is gone.
        if process.poll() is not None:
            raise NetworkError(f"TFF's worker process ended with code {process.returncode}; was the memory used up?")
        remote = tff.framework.RemoteExecutor(stub, stream_structs=False)
        # A computation of the server alone carries no number of clients; the worker wants one.
        remote.set_cardinalities({tff.CLIENTS: 0, **cardinalities})
        return remote

    return tff.framework.SyncExecutionContext(
        executor_fn=tff.framework.ResourceManagingExecutorFactory(executor),
        compiler_fn=tff.backends.native.desugar_and_transform_to_native,
    )


def _wait_until_ready(stub: Any, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START_SECONDS
    while not stub.is_ready:
        if process.poll() is not None:
            raise NetworkError(f"TFF's worker process ended with code {process.returncode} as it started")
        if time.monotonic() > end:
            raise NetworkError(f"TFF's worker process did not answer within {_START_SECONDS:.0f} seconds")
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
