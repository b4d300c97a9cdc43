"""The server's process: socket, database, uvicorn, and an orderly end."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import uvicorn

from aggregation_server.app import create_app
from aggregation_server.coordinator import Coordinator
from aggregation_server.store import Store
from aggregation_server.task import Task
from device_runtime.bundle import Bundle
from device_runtime.errors import NetworkError
from device_runtime.weights import dump_weights

_SHUTDOWN_SECONDS = 5  # for requests in flight; a slow upload must not keep the server from ending


def serve(bundle: Bundle, task: Task, store_url: str, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve a task until SIGINT or SIGTERM.

    Args:
        bundle: what devices train with.
        task: what they are to do.
        store_url: an SQLAlchemy URL, such as ``sqlite:///server.db``; a database with committed rounds is
            continued.
        host: the address to listen at.
        port: 0 picks a free one.
        announce: called with the base URL, once requests are answered.

    Raises:
        NetworkError: the address can't be listened at.
        InputError: the database can't be opened, or belongs to another model.
    """
    manifest = bundle.manifest
    with closing(_listen(host, port)) as listener:
        initial = dump_weights(bundle.initial_weights(), manifest.tensors)
        with closing(Store(store_url, manifest.model_id, initial)) as store:
            config = uvicorn.Config(
                create_app(Coordinator(bundle, task, store)),
                log_level="warning",
                access_log=False,
                server_header=False,
                ws="none",
                lifespan="on",
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            )
            _Server(config, lambda: announce(_base_url(listener))).run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises the signal again after its shutdown, so that the process would end by the signal
        # and not with exit code 0.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        # Python adds the address, which the message has already.
        reason = reason.partition(" (while ")[0]
        raise NetworkError(f"can't listen at {host}:{port}: {reason}; choose another --host or --port") from None


def _base_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
