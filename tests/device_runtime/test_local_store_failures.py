"""Stores that can't be used, and disks that can't be written: one line each, and no example is lost or told."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.bundle import Bundle
from device_runtime.errors import InputError, IntegrityError
from device_runtime.examples import Examples, ExampleTypes, load_examples
from device_runtime.local_store import LocalStore
from device_runtime.store_file import APPLICATION
from tests.disk import mounted

DAMAGED = "move it away and add the examples again"


def refusal(error: type[Exception], call: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(error) as caught:
        call(*arguments, **named)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def filled(path: Path, digits_bundle: Bundle, digits_examples: Callable[[int, int], Examples]) -> Examples:
    """Forty examples, which the store at `path` holds."""
    examples = digits_examples(40, 0)
    with LocalStore(path, ExampleTypes.of(digits_bundle.manifest)) as store:
        store.add(examples.x, examples.y)
    return examples


def test_no_store(path: Path) -> None:
    assert refusal(InputError, LocalStore, path) == f"{path}: no such store; 'pocketfed-device data add' makes one"
    name = path.with_name("n" * 300)
    assert refusal(InputError, LocalStore, name) == f"{name}: no such store; 'pocketfed-device data add' makes one"


def test_no_folder_for_a_store(tmp_path: Path, digits_bundle: Bundle) -> None:
    path = tmp_path / "no" / "store.db"
    message = refusal(InputError, LocalStore, path, ExampleTypes.of(digits_bundle.manifest))
    assert message == f"{path}: can't make a store there: No such file or directory"


def test_a_store_whose_making_was_interrupted(path: Path, digits_bundle: Bundle) -> None:
    types = ExampleTypes.of(digits_bundle.manifest)
    path.touch()
    expected = f"{path}: an empty file; 'pocketfed-device data add' makes a store of it"
    assert refusal(InputError, LocalStore, path) == expected
    sqlite3.connect(path).execute("PRAGMA journal_mode=WAL").connection.close()
    assert path.stat().st_size > 0
    assert refusal(InputError, load_examples, path, digits_bundle.manifest) == expected
    with LocalStore(path, types) as store:
        assert store.info().examples == 0


def test_the_database_of_another_program(path: Path, digits_bundle: Bundle) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()
    before = path.read_bytes()
    expected = f"{path}: a database of another program; name a store that pocketfed-device made"
    assert refusal(InputError, load_examples, path, digits_bundle.manifest) == expected
    assert refusal(InputError, LocalStore, path, ExampleTypes.of(digits_bundle.manifest)) == expected
    assert path.read_bytes() == before


def test_a_store_of_another_format(path: Path, filled: Examples) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=2")
    connection.close()
    expected = f"{path}: a store of format 2; this pocketfed-device reads format 1"
    assert refusal(InputError, LocalStore, path) == expected


@pytest.mark.parametrize(
    ("statement", "how"),
    [
        ("CREATE TRIGGER t AFTER DELETE ON examples BEGIN SELECT 1; END", "its tables are not those of format 1"),
        ("DROP TABLE free", "its tables are not those of format 1"),
        ("UPDATE settings SET value = '{' WHERE name = 'types'", "(its setting 'types')"),
        ("UPDATE settings SET value = '{}' WHERE name = 'types'", "types.x: expected an object with name, shape"),
        ("DELETE FROM settings", "types: expected an object with x, y and classes"),
        ("INSERT INTO settings VALUES ('limits', '{\"a\": 1}')", "(its setting 'limits')"),
        ("DELETE FROM slots WHERE slot = 3", "(the example with the id 3)"),
        ("UPDATE slots SET content = zeroblob(264) WHERE slot = 4", "(the example with the id 4)"),
        ("UPDATE slots SET content = substr(content, 2) WHERE slot = 5", "(the example with the id 5)"),
        ("UPDATE slots SET content = CAST(content AS TEXT) WHERE slot = 6", "(the example with the id 6)"),
        ("UPDATE slots SET content = 7 WHERE slot = 7", "(the example with the id 7)"),
    ],
)
def test_a_store_that_is_not_as_it_was_written(
    path: Path, filled: Examples, digits_bundle: Bundle, statement: str, how: str
) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()
    message = refusal(IntegrityError, load_examples, path, digits_bundle.manifest)
    assert message.startswith(f"{path}: ")
    assert how in message


def test_a_truncated_store(path: Path, filled: Examples, digits_bundle: Bundle) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    message = refusal(IntegrityError, load_examples, path, digits_bundle.manifest)
    assert message == f"{path}: the store is damaged (SQLite can't read it); {DAMAGED}"
    path.write_bytes(b"no database".ljust(8192))
    message = refusal(IntegrityError, LocalStore, path)
    assert message == f"{path}: no store, or one whose beginning is damaged; name one, or add it anew"


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "store.db"


@pytest.fixture(scope="module")
def original(damaged: Path, digits_bundle: Bundle, digits_examples: Callable[[int, int], Examples]) -> Path:
    with LocalStore(damaged, ExampleTypes.of(digits_bundle.manifest)) as store:
        examples = digits_examples(40, 0)
        store.add(examples.x, examples.y)
        store.delete([7, 8])
    return damaged.rename(damaged.with_name("original.db"))


@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=4))
def test_damage_anywhere_gives_whole_examples_or_one_line(
    damaged: Path, original: Path, digits_bundle: Bundle, digits_examples: Any, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(original.read_bytes())
    for position, byte in changes:
        data[position % len(data)] = byte
    for suffix in ("-wal", "-shm"):
        Path(str(damaged) + suffix).unlink(missing_ok=True)
    damaged.write_bytes(data)
    known = {row.tobytes() for row in digits_examples(40, 0).x}
    try:
        examples = load_examples(damaged, digits_bundle.manifest)
    except (InputError, IntegrityError) as error:
        assert str(error).startswith(f"{damaged}: ")
        assert "\n" not in str(error)
    else:
        assert {row.tobytes() for row in examples.x} <= known


def test_a_store_that_another_process_keeps_locked(path: Path, filled: Examples, digits_bundle: Bundle) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert len(load_examples(path, digits_bundle.manifest)) == 40  # who reads does not wait
    with LocalStore(path, seconds=0.2) as store:
        expected = f"{path}: another process has kept it locked for 0.2 seconds; try again"
        assert refusal(InputError, store.add, filled.x, filled.y) == expected
        assert refusal(InputError, store.clear) == expected
    other.close()
    assert len(load_examples(path, digits_bundle.manifest)) == 40


_ADD = """
import os, resource, sys
from pathlib import Path
import numpy as np
from device_runtime.errors import PocketfedError
from device_runtime.local_store import LocalStore
path, limit, user = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if user:
    os.setuid(user)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with LocalStore(path) as store:
        store.add(np.full((5000, 8, 8, 1), 0.5, np.float32), np.zeros(5000, np.int32))
except PocketfedError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def add_in_another_process(path: Path, limit: int = 0, user: int = 0) -> tuple[int, str]:
    run = subprocess.run(
        [sys.executable, "-c", _ADD, str(path), str(limit), str(user)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    return run.returncode, run.stdout.strip()


def test_a_file_that_can_t_grow(path: Path, filled: Examples, digits_bundle: Bundle) -> None:
    code, message = add_in_another_process(path, limit=200_000)
    assert (code, message) == (2, f"{path}: the disk can't be written or read (disk I/O error); the store is as it was")
    assert load_examples(path, digits_bundle.manifest).identity == filled.identity


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 500 kB."""
    with mounted(tmp_path / "disk", "500k") as folder:
        yield folder


def test_a_full_disk(small_disk: Path, digits_bundle: Bundle, digits_examples: Any) -> None:
    path, examples = small_disk / "store.db", digits_examples(40, 0)
    (small_disk / "other").write_bytes(bytes(100_000))
    with LocalStore(path, ExampleTypes.of(digits_bundle.manifest)) as store:
        store.add(examples.x, examples.y)
        many = digits_examples(5000, 1)
        expected = f"{path}: no space is left on the device; the store is as it was: free some space"
        assert refusal(InputError, store.add, many.x, many.y) == expected
        assert store.snapshot(digits_bundle.manifest).identity == examples.identity
        (small_disk / "other").unlink()
        store.delete([1])
        store.add(examples.x[:1], examples.y[:1])
        assert store.info().bytes < 200_000
    assert len(load_examples(path, digits_bundle.manifest)) == 40


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="only root can act for another user")
def test_a_file_that_this_user_may_not_write(path: Path, filled: Examples, digits_bundle: Bundle) -> None:
    for folder in path.parents:
        if folder.stat().st_mode & 0o001 == 0:
            folder.chmod(0o755)
    path.chmod(0o444)
    code, message = add_in_another_process(path, user=65534)
    assert (code, message) == (2, f"{path}: this user can't write the file or its folder, which a store needs")
    path.chmod(0o600)
    assert add_in_another_process(path, user=65534) == (code, message)
    assert load_examples(path, digits_bundle.manifest).identity == filled.identity


def test_a_python_without_sqlite(path: Path, filled: Examples, digits_bundle: Bundle) -> None:
    code = (
        "import sys; sys.modules['sqlite3'] = None\n"
        "from device_runtime.cli import main\n"
        "sys.exit(main(['data', 'info', sys.argv[1]]))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    expected = "pocketfed-device: this Python is without SQLite; install its module sqlite3, or keep examples in .npz\n"
    assert (run.returncode, run.stdout, run.stderr) == (2, "", expected)


def test_sqlite_is_loaded_for_a_store_only(digits_bundle: Bundle, tmp_path: Path, filled: Examples, path: Path) -> None:
    np.savez(tmp_path / "e.npz", x=filled.x, y=filled.y)
    code = (
        "import sys; from pathlib import Path; from device_runtime.bundle import open_bundle\n"
        "import device_runtime.cli, device_runtime.participant; from device_runtime.examples import load_examples\n"
        "bundle = open_bundle(Path(sys.argv[1]))\n"
        "for path in sys.argv[2:]: load_examples(Path(path), bundle.manifest); print('sqlite3' in sys.modules)"
    )
    arguments = [str(digits_bundle.path), str(tmp_path / "e.npz"), str(path)]
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert run.stdout.split() == ["False", "True"], run.stderr


def test_the_mark_of_a_store(path: Path, filled: Examples) -> None:
    assert path.read_bytes()[68:72] == APPLICATION.to_bytes(4, "big") == b"PFDS"
