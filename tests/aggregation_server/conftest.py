"""A small bundle of two tensors, updates for it, coordinators in this process and servers in their own."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregation_server.coordinator import Coordinator
from aggregation_server.rounds import RoundConfig
from aggregation_server.server import serve
from aggregation_server.store import Store
from aggregation_server.task import Task
from device_runtime import codec
from device_runtime.bundle import (
    FILES,
    MANIFEST,
    MANIFEST_HASH,
    WEIGHTS,
    Bundle,
    FileEntry,
    Manifest,
    StoredVariable,
    manifest_hash_file,
    open_bundle,
)
from device_runtime.tensors import TensorSpec, sha256
from device_runtime.update import ClientUpdate
from device_runtime.weights import dump_weights

SPECS = (TensorSpec("kernel", (3, 2)), TensorSpec("bias", (2,)))


_IMPORTED_LATE = (
    "pydantic.v1",
    "sqlite3.dbapi2",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A valid bundle whose artifacts are not models: the server never looks into them."""
    path = tmp_path_factory.mktemp("bundles") / "tiny-1.bundle"
    path.mkdir()
    initial = (np.arange(6, dtype=np.float32).reshape(3, 2), np.array([-1, 1], np.float32))
    content = {name: f"the bytes of {name}".encode() for name in FILES} | {WEIGHTS: dump_weights(initial, SPECS)}
    for name, data in content.items():
        (path / name).write_bytes(data)
    files = {name: FileEntry(len(data), sha256(data)) for name, data in content.items()}
    variables = tuple(StoredVariable(index, 0, spec.size) for index, spec in enumerate(SPECS))
    manifest = Manifest("tiny", 1, files, {}, SPECS, variables, "mse", "mse", {}, "float32", "test", {}).dump()
    (path / MANIFEST).write_bytes(manifest)
    (path / MANIFEST_HASH).write_bytes(manifest_hash_file(manifest))
    return open_bundle(path)


@pytest.fixture(scope="session")
def make_update() -> Callable[..., ClientUpdate]:
    """An update whose delta has the value `value` everywhere."""

    def make(value: float = 1.0, weight: int = 1, round_number: int = 1, loss: float = 0.5) -> ClientUpdate:
        delta = tuple(np.full([d or 0 for d in spec.shape], value, np.float32) for spec in SPECS)
        return ClientUpdate(delta, weight, round_number, {"loss": loss})

    return make


@pytest.fixture(scope="session")
def make_report(bundle: Bundle, make_update: Callable[..., ClientUpdate]) -> Callable[..., bytes]:
    """The bytes of `make_update`'s update."""

    def make(**fields: Any) -> bytes:
        return codec.encode(make_update(**fields), SPECS, bundle.manifest.model_id, "f32", 0)

    return make


@pytest.fixture
def now() -> list[float]:
    """The time, in its only element, of all coordinators of a test."""
    return [1000.0]


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'server.db'}"


@pytest.fixture
def open_store(bundle: Bundle, store_url: str) -> Iterator[Callable[..., Store]]:
    """Open the test's database; closed when the test ends."""
    opened: list[Store] = []

    def make(url: str = store_url) -> Store:
        manifest = bundle.manifest
        store = Store(url, manifest.model_id, dump_weights(bundle.initial_weights(), manifest.tensors))
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def make_coordinator(bundle: Bundle, open_store: Callable[..., Store], now: list[float]) -> Callable[..., Coordinator]:
    """A coordinator on the test's database; its tokens are t0, t1, … (or a0, a1, … with prefix a)."""

    def make(prefix: str = "t", store: Store | None = None, **fields: Any) -> Coordinator:
        names = ("goal_count", "over_selection", "minimum_reports", "selection_timeout", "reporting_timeout")
        config = RoundConfig(**({"goal_count": 2} | {name: fields.pop(name) for name in names if name in fields}))
        tokens = (f"{prefix}{index}" for index in range(10_000))
        return Coordinator(
            bundle,
            Task(config, **fields),
            store or open_store(),
            clock=lambda: now[0],
            new_token=lambda: next(tokens),
            rng=random.Random(1),
        )

    return make


@pytest.fixture(scope="session")
def start_server(bundle: Bundle) -> Iterator[Callable[..., tuple[str, BaseProcess]]]:
    """Start a server in a process of its own; its base URL and the process. Killed when the tests end."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs processes that are forked")
    context = multiprocessing.get_context("forkserver")
    # FastAPI takes long to import: once for all servers, in a process that is forked for each of them.
    context.set_forkserver_preload(["__main__", "aggregation_server.server", *_IMPORTED_LATE])
    started: list[BaseProcess] = []

    def start(store_url: str, config: RoundConfig, **task: Any) -> tuple[str, BaseProcess]:
        receiver, sender = context.Pipe(duplex=False)
        arguments = (bundle, Task(config, **task), store_url, "127.0.0.1", 0, sender.send)
        process = context.Process(target=serve, args=arguments)
        process.start()
        started.append(process)
        sender.close()
        with receiver:
            assert receiver.poll(60), "the server does not start"
            return str(receiver.recv()), process

    yield start
    for process in started:
        process.kill()
        process.join()
