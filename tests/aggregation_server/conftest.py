"""A small bundle of two tensors, updates for it, servers in this process and servers in their own.

`make_fleet(goal_count=2, …)` is a server's parts in this process, on files in `tmp_path`, with a clock that the test
moves (`now[0]`) and a selection that it seeds; and devices that call it. See `fleet.Fleet`:

    fleet = make_fleet(goal_count=2, rounds=5)     # fields of RoundConfig and of Task, in any order
    fleet.join("a", "b", "c")                      # enrolled, and accepted, in one turn
    fleet.configuration("a").work
    fleet.report("a", value=2.0, weight=3)         # or report("a", body)
    fleet.commit()                                 # what the desk's second thread does, and a turn after it
    fleet.tick(60)                                 # time passes, and a turn in which nobody asks
    fleet.run_round("a", "b")                      # all of it
    fleet.coordinator.handle([…])                  # several requests in one turn; `fleet.caller(name)` calls
    fleet.close(); fleet = make_fleet()            # goes on as a new process after a `kill -9` would

`make_coordinator(…)` is its coordinator alone. `start_server(RoundConfig(2), rounds=5)` is a real process on
127.0.0.1; see `running.Running`:

    server = start_server(ROUND, store_url, spool, listening=…, anybody=True, **fields of Task)
    server.url, server.process; server.kill()      # killed at the latest when the tests end
    phone = server.device("a")                     # an httpx.Client with its name and secret, enrolled
    server.operator.post("/v1/pause", json={})     # and server.viewer, server.nobody
    server.status()["phase"]
    token = server.check_in("a"); server.report("a", body, token)
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregation_server.access.enrolment import Enrolments
from aggregation_server.access.quotas import Quotas
from aggregation_server.coordination.coordinator import Coordinator
from aggregation_server.rounds import RoundConfig
from aggregation_server.server import Listening, serve
from aggregation_server.storage.store import Store
from aggregation_server.task import Task
from aggregation_server.web.callers import Keys
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
from device_runtime.messages import Enrolment
from device_runtime.tensors import TensorSpec, sha256
from device_runtime.update import ClientUpdate
from device_runtime.weights import dump_weights
from tests.aggregation_server.fleet import Fleet, secret_of
from tests.aggregation_server.running import KEYS, Running

ENROLLED = "abcdef"  # names of devices in a new fleet of `make_fleet`
UNLIMITED = Quotas(address_rate=0, device_rate=0, failure_rate=0)
"""Tests have one address, and do in a second what devices do in a day."""
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
    return _tiny(tmp_path_factory.mktemp("bundles"), "sparse_categorical_crossentropy", "accuracy")


@pytest.fixture(scope="session")
def bundle_of_numbers(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same, of a model that predicts numbers."""
    return _tiny(tmp_path_factory.mktemp("bundles"), "mean_squared_error", "mean_absolute_error")


def _tiny(folder: Path, loss: str, metric: str) -> Bundle:
    path = folder / "tiny-1.bundle"
    path.mkdir()
    initial = (np.arange(6, dtype=np.float32).reshape(3, 2), np.array([-1, 1], np.float32))
    content = {name: f"the bytes of {name}".encode() for name in FILES} | {WEIGHTS: dump_weights(initial, SPECS)}
    for name, data in content.items():
        (path / name).write_bytes(data)
    files = {name: FileEntry(len(data), sha256(data)) for name, data in content.items()}
    variables = tuple(StoredVariable(index, 0, spec.size) for index, spec in enumerate(SPECS))
    manifest = Manifest("tiny", 1, files, {}, SPECS, variables, loss, metric, {}, "float32", "test", {}).dump()
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
    """The time, in its only element, of all servers of a test that are in this process."""
    return [1000.0]


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'server.db'}"


@pytest.fixture
def spool_folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder whose files survive no power loss, and cost a tenth of the time, where the system has one."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else None) as folder:
        yield Path(folder)


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


@pytest.fixture(scope="session")
def new_database(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in which a few devices are enrolled, and nothing else has happened; to be copied.

    That takes a tenth of the time that it takes to make one.
    """
    path = tmp_path_factory.mktemp("database") / "new.db"
    manifest = bundle.manifest
    store = Store(f"sqlite:///{path}", manifest.model_id, dump_weights(bundle.initial_weights(), manifest.tensors))
    enrolments = Enrolments(store, Task(RoundConfig(1)), anybody=True)
    for name in ENROLLED:
        assert enrolments.enrol(Enrolment("", name, secret_of(name))).verdict == "enrolled"
    store.close()
    return path


@pytest.fixture
def make_fleet(
    bundle: Bundle,
    new_database: Path,
    store_url: str,
    spool_folder: Path,
    now: list[float],
    make_report: Callable[..., bytes],
) -> Iterator[Callable[..., Fleet]]:
    """A server on the test's database, or another one, with a goal count of 2; closed when the test ends."""
    made: list[Fleet] = []

    def make(store_url: str = store_url, spool: Path = spool_folder, chance: int = 1, **fields: Any) -> Fleet:
        path = Path(store_url.removeprefix("sqlite:///"))
        if store_url.startswith("sqlite:///") and not path.exists():
            shutil.copy(new_database, path)
        names = {field.name for field in fields_of(RoundConfig)}
        config = RoundConfig(**{"goal_count": 2} | {name: fields.pop(name) for name in names & fields.keys()})
        fleet = Fleet(bundle, Task(config, **fields), store_url, spool, now, make_report, chance)
        made.append(fleet)
        return fleet

    yield make
    for fleet in made:
        fleet.close()


@pytest.fixture
def make_coordinator(make_fleet: Callable[..., Fleet]) -> Callable[..., Coordinator]:
    """The coordinator of a fleet."""
    return lambda **fields: make_fleet(**fields).coordinator


@pytest.fixture(scope="session")
def start_server(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """Start a server in a process of its own, by default on a new database. Killed when the tests end."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs processes that are forked")
    context = multiprocessing.get_context("forkserver")
    # FastAPI takes long to import: once for all servers, in a process that is forked for each of them.
    context.set_forkserver_preload(["__main__", "aggregation_server.server", *_IMPORTED_LATE])
    started: list[Running] = []

    def start(
        config: RoundConfig,
        store_url: str | None = None,
        spool: Path | None = None,
        keys: Keys = KEYS,
        listening: Listening | None = None,
        anybody: bool = True,
        quotas: Quotas = UNLIMITED,
        served: Bundle = bundle,
        **task: Any,
    ) -> Running:
        folder = tmp_path_factory.mktemp("server")
        store_url = store_url or f"sqlite:///{folder / 'server.db'}"
        receiver, sender = context.Pipe(duplex=False)
        listening = listening or Listening()
        places = (store_url, spool or folder / "spool", keys, listening)
        arguments = (served, Task(config, **task), *places, sender.send, anybody, quotas)
        process = context.Process(target=serve, args=arguments)
        process.start()
        sender.close()
        with receiver:
            try:
                assert receiver.poll(60), "the server does not start"
                url = str(receiver.recv())
            except BaseException:
                process.kill()
                process.join()
                raise
        started.append(Running(url, process, keys, listening.certificate))
        return started[-1]

    yield start
    for server in started:
        server.kill()
