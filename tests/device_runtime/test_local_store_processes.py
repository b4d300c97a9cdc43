"""Several processes at one store: snapshots while another one writes all the time, and writers that are killed."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_runtime.bundle import Bundle
from device_runtime.errors import InputError
from device_runtime.examples import Examples, ExampleTypes, load_examples
from device_runtime.local_store import Limits, LocalStore

BATCH = 7
KILLS = 12

# Adds batches of seven, whose examples all tell the batch's number, and deletes some batch that it finds, as a whole.
_WRITE = """
import random, sys
from pathlib import Path
import numpy as np
from device_runtime.local_store import LocalStore
rng = random.Random(int(sys.argv[2]))
with LocalStore(Path(sys.argv[1])) as store:
    print("ready", flush=True)
    while True:
        first = store._file.connection.execute("SELECT coalesce(max(id), 0) FROM examples").fetchone()[0]
        number = rng.randrange(1, 1 << 20)
        store.add(np.full((7, 8, 8, 1), number, np.float32), np.full(7, number % 10, np.int32))
        if rng.random() < 0.6:
            ids = [i for (i,) in store._file.connection.execute("SELECT id FROM examples ORDER BY id")]
            start = 7 * rng.randrange(len(ids) // 7)
            store.delete(ids[start : start + 7])
"""


@contextmanager
def writer(path: Path, seed: int) -> Iterator[subprocess.Popen[str]]:
    """A process that writes until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITE, str(path), str(seed)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture
def path(tmp_path: Path, digits_bundle: Bundle) -> Path:
    with LocalStore(tmp_path / "store.db", ExampleTypes.of(digits_bundle.manifest)) as store:
        store.add(np.full((BATCH, 8, 8, 1), 5, np.float32), np.full(BATCH, 5, np.int32))
    return tmp_path / "store.db"


def require_whole_batches(examples: Examples) -> None:
    assert len(examples) % BATCH == 0
    numbers = examples.x.reshape(-1, BATCH * 64)
    assert (numbers == numbers[:, :1]).all()  # no half example, no half batch
    assert np.array_equal(examples.y.reshape(-1, BATCH), np.repeat(numbers[:, :1].astype(int) % 10, BATCH, axis=1))


def test_a_snapshot_is_of_one_moment_while_another_process_writes(path: Path, digits_bundle: Bundle) -> None:
    seen = set[str]()
    with writer(path, 1):
        end = time.monotonic() + 5
        while len(seen) < 20 or time.monotonic() < end:
            examples = load_examples(path, digits_bundle.manifest)
            require_whole_batches(examples)
            seen.add(examples.identity)
            assert time.monotonic() < end + 60


def test_a_writer_that_is_killed_leaves_whole_batches(path: Path, digits_bundle: Bundle) -> None:
    rng, sizes = random.Random(0), set()
    for seed in range(KILLS):
        with writer(path, seed):
            time.sleep(rng.random() * 0.3)
        examples = load_examples(path, digits_bundle.manifest)
        require_whole_batches(examples)
        sizes.add(len(examples))
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            query = "SELECT count(*), count(DISTINCT slot) FROM examples WHERE slot NOT IN free"
            assert connection.execute(query).fetchone() == (len(examples),) * 2
            both = "SELECT (SELECT count(*) FROM examples) + (SELECT count(*) FROM free), count(*) FROM slots"
            assert len(set(connection.execute(both).fetchone())) == 1
        connection.close()
    assert len(sizes) > 3


def test_two_processes_make_one_store(tmp_path: Path, digits_bundle: Bundle, digits_examples: Any) -> None:
    code = (
        "import sys; from pathlib import Path; from device_runtime.cli import main\n"
        "print('ready', flush=True); sys.stdin.readline(); sys.exit(main(sys.argv[1:]))"
    )
    examples = digits_examples(3, 0)
    np.savez(tmp_path / "e.npz", x=examples.x, y=examples.y)
    store = tmp_path / "store.db"
    arguments = ["data", "add", str(store), str(tmp_path / "e.npz"), "--for", str(digits_bundle.path)]
    processes = [
        subprocess.Popen([sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        process.communicate(b"\n", timeout=60)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(load_examples(store, digits_bundle.manifest)) == 9


def test_a_process_that_loads_its_own_store_keeps_its_locks(path: Path, digits_bundle: Bundle) -> None:
    """Without them another process would take itself for the last one, and remove the journal that is in use."""
    with LocalStore(path) as store:
        store.add(np.full((BATCH, 8, 8, 1), 6, np.float32), np.full(BATCH, 6, np.int32))
        assert len(load_examples(path, digits_bundle.manifest)) == 2 * BATCH
        code = "import sys; from device_runtime.cli import main; sys.exit(main(['data', 'info', sys.argv[1]]))"
        subprocess.run([sys.executable, "-c", code, str(path)], stdin=subprocess.DEVNULL, check=True)
        assert Path(f"{path}-wal").stat().st_size > 0
        store.add(np.full((BATCH, 8, 8, 1), 7, np.float32), np.full(BATCH, 7, np.int32))
    require_whole_batches(load_examples(path, digits_bundle.manifest))
    assert not Path(f"{path}-wal").exists()


def test_examples_that_can_t_be_expired_from_the_disk_now_are_left_out_all_the_same(
    path: Path, digits_bundle: Bundle
) -> None:
    """An app that reads for a long time, or a full disk, does not keep a device from its round."""
    with LocalStore(path) as store:
        store.set_limits(Limits(max_age=2.0))
    reader = sqlite3.connect(path, isolation_level=None)
    try:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM examples").fetchone() == (BATCH,)
        time.sleep(2.0)
        with LocalStore(path, seconds=0.1) as store:
            with pytest.raises(InputError, match="another process has been reading for"):
                store.expire()
            store.set_limits(Limits(max_age=60.0))
            store.add(np.full((1, 8, 8, 1), 6, np.float32), np.full(1, 6, np.int32))
        with LocalStore(path, seconds=0.1, clock=lambda: time.time() - 3600) as store:
            store.add(np.full((1, 8, 8, 1), 7, np.float32), np.full(1, 7, np.int32))
        assert load_examples(path, digits_bundle.manifest).y.tolist() == [6]
    finally:
        reader.close()
