"""The local store: types, limits, snapshots, and that what is deleted is gone from the disk's files."""

from __future__ import annotations

import random
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from device_runtime.bundle import Bundle, Signature
from device_runtime.errors import InputError
from device_runtime.examples import Examples, ExampleTypes, load_examples
from device_runtime.local_store import Limits, LocalStore
from device_runtime.tensors import TensorSpec

BESIDE = ("", "-wal", "-shm")
PIXELS = ExampleTypes(TensorSpec("x", (None, 4)), TensorSpec("y", (None,), "int32"), 10)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[LocalStore]:
    with LocalStore(tmp_path / "store.db", PIXELS, seconds=0.2, clock=clock) as made:
        yield made


def pixels(*values: float) -> dict[str, npt.NDArray[Any]]:
    """An example for each value, which its features hold."""
    x = np.repeat(np.array(values, np.float32)[:, None], 4, axis=1)
    return {"x": x, "y": np.zeros(len(values), np.int32)}


def words(path: Path) -> set[int]:
    """All runs of four bytes in the store's files, read by another process so that SQLite's locks stay."""
    files = [str(path) + suffix for suffix in BESIDE if Path(str(path) + suffix).exists()]
    data = subprocess.run(["cat", *files], capture_output=True, check=True).stdout
    runs = (np.frombuffer(data, np.int32, (len(data) - start) // 4, start) for start in range(4))
    return {int(word) for run in runs for word in np.unique(run)}


def refusal(error: type[Exception], call: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(error) as caught:
        call(*arguments, **named)
    return str(caught.value)


def test_what_is_added_is_what_a_round_trains_on(digits_bundle: Bundle, digits_examples: Any, tmp_path: Path) -> None:
    path, manifest = tmp_path / "a store?#%.db", digits_bundle.manifest
    first, second = digits_examples(5, 0), digits_examples(3, 1)
    with LocalStore(path, ExampleTypes.of(manifest)) as store:
        assert store.add(first.x, first.y).ids == range(1, 6)
        assert store.add(np.asfortranarray(second.x), second.y[::-1][::-1]).ids == range(6, 9)
        seen = load_examples(path, manifest)  # while the app has it open
    for examples in (seen, load_examples(path, manifest)):
        assert np.array_equal(examples.x, np.concatenate([first.x, second.x]))
        assert np.array_equal(examples.y, np.concatenate([first.y, second.y]))
        assert (str(examples.x.dtype), str(examples.y.dtype), examples.last) == ("float32", "int32", 8)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_its_files_are_the_owner_s_alone(store: LocalStore) -> None:
    store.add(**pixels(1))
    for suffix in BESIDE:
        assert stat.S_IMODE(Path(str(store.path) + suffix).stat().st_mode) == 0o600


def test_the_same_examples_have_the_same_identity(digits_bundle: Bundle, digits_examples: Any, tmp_path: Path) -> None:
    examples, manifest = digits_examples(6, 0), digits_bundle.manifest
    np.savez(tmp_path / "e.npz", x=examples.x, y=examples.y)
    path = tmp_path / "store.db"
    with LocalStore(path, ExampleTypes.of(manifest)) as store:
        store.add(examples.x, examples.y)
        snapshot = load_examples(path, manifest)
        assert snapshot.identity == load_examples(tmp_path / "e.npz", manifest).identity == examples.identity
        store.add(examples.x[:2], examples.y[:2])
        assert load_examples(path, manifest).identity != snapshot.identity
        assert load_examples(path, manifest, through=snapshot.last).identity == snapshot.identity
        store.delete([3])
        assert load_examples(path, manifest, through=snapshot.last).identity != snapshot.identity
    others = [replace(examples, y=examples.y[::-1]), Examples(examples.x[::-1], examples.y)]
    others += [Examples(examples.x.reshape(6, 64), examples.y), Examples(examples.x.view(np.int32), examples.y)]
    assert len({examples.identity, *(other.identity for other in others)}) == 5


def test_ids_are_never_used_again(store: LocalStore) -> None:
    store.add(**pixels(1, 2))
    store.clear()
    assert store.add(**pixels(3)).ids == range(3, 4)
    store.delete([3])
    assert store.add(**pixels(4)).ids == range(4, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.zeros((2, 5), np.float32)}, "array 'x' is float32[2, 5]; expected float32[n, 4]"),
        ({"x": np.zeros((2, 4))}, "array 'x' is float64[2, 4]; expected float32[n, 4]"),
        ({"y": np.zeros(3, np.int32)}, "2 rows of x and 3 of y; expected as many of both, at least one"),
        ({"y": np.array([0, 10], np.int32)}, "array 'y' holds labels from 0 to 10; expected 0 to 9"),
        ({"x": np.full((2, 4), np.nan, np.float32)}, "array 'x' holds values that are not finite"),
    ],
    ids=["shape", "dtype", "rows", "labels", "nan"],
)
def test_unfit_examples_are_not_added(store: LocalStore, changes: dict[str, Any], message: str) -> None:
    assert refusal(InputError, store.add, **(pixels(1, 2) | changes)) == f"{store.path}: {message}"
    assert store.info().examples == 0


def test_a_bundle_with_other_types_is_refused(digits_bundle: Bundle, store: LocalStore) -> None:
    store.add(**pixels(1))
    expected = (
        f"{store.path}: holds examples of x float32[n, 4] and y int32[n] from 0 to 9, but the bundle takes"
        " x float32[n, 8, 8, 1] and y int32[n] from 0 to 9"
    )
    assert refusal(InputError, load_examples, store.path, digits_bundle.manifest) == expected
    expected = expected.replace("the bundle", "the model")
    assert refusal(InputError, LocalStore, store.path, ExampleTypes.of(digits_bundle.manifest)) == expected


def test_labels_are_checked_against_the_bundle_too(digits_bundle: Bundle, digits_examples: Any, tmp_path: Path) -> None:
    manifest = digits_bundle.manifest
    infer = manifest.signatures["infer"]
    fewer = replace(infer, outputs=(replace(infer.outputs[0], shape=(None, 5)),))
    other = replace(manifest, signatures={**manifest.signatures, "infer": fewer})
    examples = digits_examples(30, 0)
    with LocalStore(tmp_path / "s", ExampleTypes.of(manifest)) as store:
        store.add(examples.x, examples.y)
        message = refusal(InputError, store.snapshot, other)
    assert message == f"{tmp_path / 's'}: array 'y' holds labels from 0 to 9; expected 0 to 4"
    assert isinstance(fewer, Signature)


def test_an_empty_store_can_t_be_trained_on(digits_bundle: Bundle, tmp_path: Path) -> None:
    with LocalStore(tmp_path / "s", ExampleTypes.of(digits_bundle.manifest)) as store:
        message = refusal(InputError, store.snapshot, digits_bundle.manifest)
    assert message == f"{tmp_path / 's'}: holds no examples to train on; 'pocketfed-device data add' adds some"


def test_deleting_by_id_by_age_and_altogether(store: LocalStore, clock: Clock) -> None:
    store.add(**pixels(1, 2, 3))
    clock.now += 10
    store.add(**pixels(4, 5))
    assert store.delete([2, 2, 99, -1, 2**70]) == 1
    assert store.delete_older_than(11) == 0
    assert store.delete_older_than(9) == 2
    info = store.info()
    assert (info.examples, info.oldest, info.newest) == (2, 1010.0, 1010.0)
    assert store.clear() == 2
    assert store.info().examples == store.clear() == 0


def values(store: LocalStore) -> list[int]:
    query = "SELECT content FROM examples JOIN slots USING (slot) ORDER BY id"
    return [int(np.frombuffer(content[:4], np.float32)[0]) for (content,) in store._file.connection.execute(query)]


def test_the_oldest_make_room(store: LocalStore) -> None:
    assert store.set_limits(Limits(max_examples=4)) == 0
    assert store.add(**pixels(1, 2, 3)).dropped == 0
    added = store.add(**pixels(4, 5, 6))
    assert (added.ids, added.dropped, values(store)) == (range(4, 7), 2, [3, 4, 5, 6])
    added = store.add(**pixels(*range(10, 20)))
    assert (added.ids, added.dropped, values(store)) == (range(13, 17), 10, [16, 17, 18, 19])
    assert store.set_limits(Limits(max_examples=1)) == 3
    assert values(store) == [19]


def test_what_is_too_old_goes(digits_bundle: Bundle, digits_examples: Any, tmp_path: Path, clock: Clock) -> None:
    manifest, examples = digits_bundle.manifest, digits_examples(2, 0)
    with LocalStore(tmp_path / "s", ExampleTypes.of(manifest), clock=clock) as store:
        store.set_limits(Limits(max_age=60))
        store.add(examples.x, examples.y)
        clock.now += 50
        store.add(examples.x, examples.y)
        assert len(store.snapshot(manifest)) == 4
        clock.now += 11
        assert (len(store.snapshot(manifest)), store.info().examples) == (2, 4)
        assert (store.expire(), store.info().examples) == (2, 2)
        clock.now += 50
        assert store.add(examples.x[:1], examples.y[:1]).dropped == 2
        clock.now += 61
        assert "holds no examples" in refusal(InputError, store.snapshot, manifest)
    with LocalStore(tmp_path / "s") as store:  # by the real clock all are from the distant past
        assert "holds no examples" in refusal(InputError, load_examples, tmp_path / "s", manifest)
        assert store.info().examples == 0


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(max_bytes=50_000), "a limit of 50000 bytes; expected at least 106496"),
        (Limits(max_examples=0), "a limit of 0 examples; expected at least 1"),
        (Limits(max_age=0), "a limit of 0 seconds; expected more than 0"),
    ],
    ids=["bytes", "examples", "age"],
)
def test_limits_that_leave_no_room(store: LocalStore, limits: Limits, message: str) -> None:
    assert refusal(InputError, store.set_limits, limits) == f"{store.path}: {message}"
    assert store.limits == Limits()


def test_limits_hold_for_all_who_add(store: LocalStore) -> None:
    store.set_limits(Limits(max_age=1e9, max_bytes=10**6, max_examples=2))
    with LocalStore(store.path) as other:
        assert other.limits == Limits(1e9, 10**6, 2)
        assert other.add(**pixels(1, 2, 3)).dropped == 1


@pytest.mark.parametrize("width", [5, 62, 250, 1010, 1021, 1030, 3000])
def test_deleted_bytes_are_gone_and_the_quota_holds(tmp_path: Path, width: int) -> None:
    """Whatever is added, deleted, dropped and limited in whatever order; widths on both sides of SQLite's page."""
    rng = random.Random(width)
    types = ExampleTypes(TensorSpec("x", (None, width), "int32"), TensorSpec("y", (None,), "int32"), None)
    path, living, deleted, number = tmp_path / "store.db", set[int](), set[int](), 0

    def mark(identity: int) -> int:
        return identity * 0x9E3779B1 & 0x3FFFFFFF | 0x40000000  # no two have the same, and nothing else does

    with LocalStore(path, types) as store:

        def settle(expected: int) -> None:
            nonlocal living, deleted
            now = {identity for (identity,) in store._file.connection.execute("SELECT id FROM examples")}
            assert len(living - now) == expected
            living, deleted = now, deleted | living - now
            limit = store.limits.max_bytes
            on_disk = sum(p.stat().st_size for suffix in BESIDE if (p := Path(str(path) + suffix)).exists())
            assert limit is None or on_disk <= limit
            found = words(path)
            assert not [i for i in deleted if mark(i) in found]
            assert all(mark(i) in found for i in living)

        for _ in range(12):
            count = rng.randrange(1, 60)
            marks = [mark(number + 1 + place) for place in range(count)]
            added = store.add(np.repeat(np.array(marks, np.int32)[:, None], width, axis=1), np.zeros(count, np.int32))
            living |= set(range(number + 1, number + 1 + count))
            number += count
            settle(added.dropped)
            assert set(added.ids) == living & set(range(number + 1 - count, number + 1))
            some = rng.sample(sorted(living), rng.choice([1, len(living) // 3, len(living)]))
            settle(store.delete(some))
            if rng.random() < 0.4:
                limit = rng.choice([None, store._slots.least_bytes, 250_000, 1_000_000])
                settle(store.set_limits(Limits(max_bytes=limit, max_examples=rng.choice([None, 40]))))
            if rng.random() < 0.1:
                settle(store.clear())
        assert store._file.connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_much_free_space_is_given_back(tmp_path: Path) -> None:
    types = replace(PIXELS, x=TensorSpec("x", (None, 1000)))
    with LocalStore(tmp_path / "s", types) as store:
        store.add(np.ones((2000, 1000), np.float32), np.zeros(2000, np.int32))
        store.delete(range(1, 800))
        assert store.info().bytes > 8_000_000  # kept for what is added next
        store.delete(range(1, 1900))
        assert store.info().bytes < 1_000_000


_DIES_BEFORE_THE_JOURNAL_IS_EMPTIED = """
import os, signal, sys
from pathlib import Path
from device_runtime.local_store import LocalStore
store = LocalStore(Path(sys.argv[1]))
store._tidy = lambda number: os.kill(os.getpid(), signal.SIGKILL)
store.clear()
"""


def test_what_a_killed_process_left_in_the_journal_goes_with_the_next_use(store: LocalStore) -> None:
    store.add(**pixels(0.123456))
    mark = int(np.float32(0.123456).view(np.int32))
    run = [sys.executable, "-c", _DIES_BEFORE_THE_JOURNAL_IS_EMPTIED, str(store.path)]
    assert subprocess.run(run, stdin=subprocess.DEVNULL).returncode == -9
    assert store.info().examples == 0
    assert mark in words(store.path)
    store.empty_journal()
    assert mark not in words(store.path)


def test_a_reader_that_stays_is_told_of(store: LocalStore) -> None:
    store.add(**pixels(1, 2))
    reader = sqlite3.connect(store.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM examples").fetchone()
    expected = (
        f"{store.path}: done, but another process has been reading for 0.2 seconds, so that deleted bytes are still in"
        " the journal beside it; 'pocketfed-device data expire' clears them later"
    )
    assert refusal(InputError, store.delete, [1]) == expected
    assert store.info().examples == 1
    reader.close()
    store.empty_journal()


def test_an_add_is_no_failure_where_a_reader_stays(store: LocalStore) -> None:
    store.set_limits(Limits(max_examples=1))
    store.add(**pixels(0.123456))
    reader = sqlite3.connect(store.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM examples").fetchone()
    mark = int(np.float32(0.123456).view(np.int32))
    added = store.add(**pixels(2))
    assert (added.ids, added.dropped, mark in words(store.path)) == (range(2, 3), 1, True)
    reader.close()
    store.set_limits(Limits())
    store.add(**pixels(3))
    assert mark not in words(store.path)


def test_numpy_s_numbers_are_ids_too(store: LocalStore) -> None:
    store.add(**pixels(1, 2, 3))
    assert store.delete(np.array([1, 3])) == 2
