"""A worker for simulations on other machines, until a signal ends it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from types import FrameType

from device_runtime.errors import InputError, NetworkError
from tff_sim.workers.addresses import Address
from tff_sim.workers.notices import Notice
from tff_sim.workers.process import worker_process

_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  compared with, not bound to


def run_worker(host: str, port: int, threads: int, ready: Callable[[Address], None], notice: Notice) -> None:
    """Serve until SIGTERM; Ctrl-C raises as ever.

    Args:
        host, port: where to listen; port 0 takes a free one.
        threads: of each client's training.
        ready: called with the address when connections are accepted.
        notice: told where the system can't keep other addresses from the worker.

    Raises:
        InputError: the address is none of this machine, or the port is taken.
        NetworkError: the worker's process ended.
    """
    with _listen(host, port) as listener, worker_process(listener, threads) as (process, warning):
        if warning is not None and host not in _EVERYWHERE:
            notice(warning)
        before = signal.signal(signal.SIGTERM, _end)
        try:
            ready(Address(host, listener.getsockname()[1]))
            code = process.wait()
        except _TerminatedError:
            return
        finally:
            signal.signal(signal.SIGTERM, before)
    raise NetworkError(f"TFF's worker process ended with code {code}; was the memory used up?")


class _TerminatedError(Exception):
    pass


def _end(number: int, frame: FrameType | None) -> None:
    raise _TerminatedError


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        # Without what Python adds to it; numbers below 0 are of a name that is no address.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else "the host is unknown"
        raise InputError(f"can't listen on {Address(host, port)}: {reason}; choose another --port or --bind") from error
