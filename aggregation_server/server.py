"""The server's process: sockets, database, spool, uvicorn, and an orderly end."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import math
import os
import resource
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import uvicorn

from aggregation_server.access.enrolment import Enrolments
from aggregation_server.access.quotas import Quotas, rate_limits
from aggregation_server.coordination.committer import Committer
from aggregation_server.coordination.coordinator import Coordinator
from aggregation_server.coordination.desk import Desk
from aggregation_server.storage.spool import Spool
from aggregation_server.storage.store import Store
from aggregation_server.task import Task
from aggregation_server.web.app import create_app
from aggregation_server.web.callers import Keys
from aggregation_server.web.connections import Connections, bounded_protocol
from device_runtime.bundle import Bundle
from device_runtime.errors import InputError, NetworkError
from device_runtime.weights import dump_weights

logger = logging.getLogger(__name__)

_OTHER_FILES = 512  # that the process has open, besides connections
_SHUTDOWN_SECONDS = 5  # for requests in flight; a slow upload must not keep the server from ending
_M_ARENA_MAX = -8  # see mallopt(3)
_MOST_THREADS = 4  # of a commit; each takes as much memory as three models


@dataclass(frozen=True)
class Listening:
    """Where and how a server listens.

    Attributes:
        host: the address.
        port: 0 picks a free one.
        certificate, private_key: PEM files for TLS; without them, the server speaks plain HTTP.
        insecure: speak plain HTTP although others than this machine can hear it.
    """

    host: str = "127.0.0.1"
    port: int = 0
    certificate: Path | None = None
    private_key: Path | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise InputError("TLS needs a certificate and its key: give both --tls-cert and --tls-key")
        if self.certificate is None and not self.insecure and not is_loopback(self.host):
            raise InputError(
                f"{self.host}: secrets and updates would go over the network as they are; give --tls-cert and"
                " --tls-key, or --insecure where something in front of this server speaks TLS"
            )


def serve(
    bundle: Bundle,
    task: Task,
    store_url: str,
    spool_folder: Path,
    keys: Keys,
    listening: Listening,
    announce: Callable[[str], None],
    anybody: bool = False,
    quotas: Quotas | None = None,
) -> None:
    """Serve a task until SIGINT or SIGTERM.

    Args:
        bundle: what devices train with.
        task: what they are to do.
        store_url: an SQLAlchemy URL, such as ``sqlite:///server.db``; a database with committed rounds is
            continued.
        spool_folder: for the reports of the open round; the same for all servers on the database.
        keys: of the people who run the fleet.
        listening: where.
        announce: called with the base URL, once requests are answered.
        anybody: whether devices enrol without a code; only where nobody else can reach the server.
        quotas: what it takes from its callers; None for the default ones.

    Raises:
        NetworkError: the address can't be listened at.
        InputError: the database or the spool can't be opened, the database belongs to another model, or the certificate
            can't be used.
    """
    if anybody and not is_loopback(listening.host):
        raise InputError(
            f"{listening.host}: with --open-enrolment everybody could take part; it is for 127.0.0.1 alone"
        )
    _take_memory_from_one_place()
    quotas = quotas or Quotas()
    tls = None if listening.certificate is None else _tls(listening)
    manifest = bundle.manifest
    connections = Connections(_room_for(quotas.connections), quotas.idle_seconds, quotas.slow_seconds)
    with closing(_listen(listening.host, listening.port)) as listener:
        initial = dump_weights(bundle.initial_weights(), manifest.tensors)
        with closing(Store(store_url, manifest.model_id, initial)) as store, closing(Spool(spool_folder)) as spool:
            coordinator = Coordinator(bundle, task, store, spool, limits=rate_limits(quotas.device_rate))
            desk = Desk(coordinator, Committer(coordinator, min(os.cpu_count() or 1, _MOST_THREADS)))
            config = uvicorn.Config(
                create_app(desk, Enrolments(store, task, anybody), keys, quotas),
                log_config=None,  # whoever starts the server says what is logged, and how
                http=bounded_protocol(connections),
                timeout_keep_alive=math.ceil(quotas.idle_seconds) + 1,  # `connections` are sooner
                proxy_headers=bool(quotas.trusted_proxies),
                forwarded_allow_ips=list(quotas.trusted_proxies),
                access_log=False,
                server_header=False,
                ws="none",
                lifespan="on",
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            )
            config.load()
            config.ssl = tls
            gc.freeze()  # what is there now stays: looking for garbage in it would hold up all for a tenth of a second
            started = partial(announce, _base_url(listener, tls is not None))
            _Server(config, quotas.slow_seconds, started).run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, handshake_seconds: float, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._handshake_seconds = handshake_seconds
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self.config.ssl is not None:  # uvicorn leaves it at asyncio's minute
            loop = asyncio.get_running_loop()
            loop.create_server = partial(  # type: ignore[method-assign]
                loop.create_server, ssl_handshake_timeout=self._handshake_seconds
            )
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


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _tls(listening: Listening) -> ssl.SSLContext:
    assert listening.certificate is not None and listening.private_key is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for path in (listening.certificate, listening.private_key):
        if not path.is_file():
            raise InputError(f"{path}: no such file; --tls-cert and --tls-key name PEM files")

    def password() -> str:  # OpenSSL would ask for it at the terminal
        raise InputError(
            f"{listening.private_key}: the key is encrypted; give one that is not, which others can't read"
        )

    try:
        context.load_cert_chain(listening.certificate, listening.private_key, password)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise InputError(f"{listening.certificate}: can't be used with {listening.private_key}: {reason}") from None
    return context


def _room_for(connections: int) -> int:
    """How many connections there can be, after the limit on open files was raised as far as they need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        more = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(ValueError, OSError):  # macOS says that there is no limit, and has one
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
        if soft < wanted:
            connections = max(soft - _OTHER_FILES, 1)
            logger.warning(
                "at most %d connections: this process may have no more than %d files open", connections, soft
            )
    return connections


def _take_memory_from_one_place() -> None:
    """Have all threads share one arena of glibc's allocator, where that is this system's.

    What one thread takes and another one gives back leaves holes in the arenas of both: without this, a server grows by
    about two megabytes in a thousand rounds.
    """
    with suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=4096)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        # Python adds the address, which the message has already.
        reason = reason.partition(" (while ")[0]
        raise NetworkError(f"can't listen at {host}:{port}: {reason}; choose another --host or --port") from None


def _base_url(listener: socket.socket, secure: bool) -> str:
    host, port = listener.getsockname()[:2]
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
