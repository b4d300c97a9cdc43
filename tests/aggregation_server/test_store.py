"""The database: what it remembers, what it refuses, and what a failure in the middle leaves."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, update
from sqlalchemy.exc import IntegrityError, OperationalError

from aggregation_server.history import Counts, RoundRecord
from aggregation_server.rounds import Phase, Round, RoundConfig
from aggregation_server.storage.database import StoreError
from aggregation_server.storage.ledger import REMEMBERED
from aggregation_server.storage.rows import Version
from aggregation_server.storage.schema import WEIGHTS
from aggregation_server.storage.store import Store
from device_runtime.bundle import Bundle
from device_runtime.errors import InputError
from device_runtime.tensors import sha256
from device_runtime.weights import dump_weights

OpenStore = Callable[..., Store]
CONFIG = RoundConfig(2)


def commit(
    store: Store, data: bytes, encoded: tuple[str, bytes] | None = None, moments: bytes = b"moments", keep: int = 50
) -> RoundRecord:
    """A round with made-up numbers that makes a version; its record."""
    with store.ledger(CONFIG) as ledger:
        number = ledger.fleet.number + 1
        opened = ledger.begin_round(number, "training", 5.0)
        counts = Counts(checked_in=3, rejected={"cohort_full": 1}, reported=2, upload_bytes=99)
        record = RoundRecord(number, "committed", sha256(data), 10.0, 12.0, 2.0, loss=0.25, examples=40, clients=2)
        record = replace(record, counts=counts, cohort=3, id=opened.id)
        ledger.keep_version(Version(record.weights, data, encoded=encoded), keep)
        ledger.set_fleet(number=number, weights=record.weights)
        ledger.end_round(_committed(opened), record, moments)
    return record


def _committed(opened: Round) -> Round:
    return replace(opened, phase=Phase.COMMITTED, cohort=3, reported=2, since=7.0)


def test_a_new_database_holds_the_initial_weights_as_version_0(open_store: OpenStore, bundle: Bundle) -> None:
    initial = dump_weights(bundle.initial_weights(), bundle.manifest.tensors)
    store = open_store()
    fleet = store.fleet()
    assert (fleet.number, fleet.clock, fleet.paused, fleet.released) == (0, 0.0, False, None)
    assert fleet.weights == fleet.initial_weights == sha256(initial)
    assert len(fleet.token_key) == 32
    assert store.weights(fleet.weights) == initial
    assert (store.history(10), store.open_round(CONFIG)) == ([], None)


def test_what_was_committed_is_there_when_it_is_opened_again(open_store: OpenStore) -> None:
    first = open_store()
    records = [commit(first, b"one"), commit(first, b"two", (sha256(b"one"), b"difference"))]
    before = first.fleet()
    first.close()
    again = open_store()
    assert again.fleet() == before
    assert (before.number, before.weights) == (2, sha256(b"two"))
    assert before.counts == Counts(checked_in=6, rejected={"cohort_full": 2}, reported=4, upload_bytes=198)
    assert again.history(10) == records
    assert again.history(1) == records[1:]
    assert again.history(10, before=records[1].id) == records[:1]
    assert again.weights(sha256(b"one")) == b"one"
    assert again.weights(sha256(b"never")) is None
    assert (again.optimizer(2), again.optimizer(3)) == (b"moments", None)
    assert again.encoded_weights(sha256(b"difference")) == b"difference"
    assert again.encoded_weights(sha256(b"never")) is None
    assert again.encoded_forms() == [(sha256(b"two"), sha256(b"one"), b"difference")]


def test_the_encoded_forms_of_the_latest_versions_are_kept(open_store: OpenStore) -> None:
    store = open_store()
    for number in range(REMEMBERED + 3):
        commit(store, b"%d" % number, ("", b"encoded %d" % number))
    forms = [data for _, _, data in store.encoded_forms()]
    assert forms == [b"encoded %d" % number for number in range(3, REMEMBERED + 3)]


def test_a_version_that_is_let_go_of_costs_its_round_s_row_alone(open_store: OpenStore, tmp_path: Path) -> None:
    store, rng, names, pages = open_store(), random.Random(0), [], []
    for _ in range(4):
        for _ in range(50):
            weights, moments = rng.randbytes(7000), rng.randbytes(7000)  # neither fills whole pages of 4 KB
            names.append(commit(store, weights, moments=moments, keep=3).weights)
        with store.database.reading() as connection:
            pages.append(connection.exec_driver_sql("PRAGMA page_count").scalar_one())
    assert (pages[-1] - pages[0]) * 4096 / 150 < 1000  # bytes a round
    assert [record.weights for record in store.history(1000)] == names
    assert [store.weights(name) is not None for name in names] == [False] * 197 + [True] * 3
    assert [number for number in range(201) if store.optimizer(number) is not None] == [198, 199, 200]


@pytest.mark.parametrize("table", ["weights", "rounds", "optimizers", "fleet"])
def test_a_crash_in_the_middle_of_a_commit_leaves_the_old_state(open_store: OpenStore, table: str) -> None:
    store = open_store()
    before = store.fleet()

    def crash(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if statement.startswith((f"INSERT INTO {table}", f"UPDATE {table}")):
            raise KeyboardInterrupt

    event.listen(Engine, "before_cursor_execute", crash)
    try:
        with pytest.raises(KeyboardInterrupt):
            commit(store, b"one")
    finally:
        event.remove(Engine, "before_cursor_execute", crash)
    store.close()
    again = open_store()
    assert again.fleet() == before
    assert again.weights(sha256(b"one")) is None
    assert (again.history(10), again.open_round(CONFIG)) == ([], None)


def test_a_version_is_made_once(open_store: OpenStore) -> None:
    store = open_store()
    commit(store, b"one")
    with store.ledger(CONFIG) as ledger:
        ledger.set_fleet(number=0)
    with pytest.raises(
        StoreError, match=r"server\.db: the server's database failed: UNIQUE constraint failed"
    ) as caught:
        commit(store, b"other")
    assert isinstance(caught.value.__cause__, IntegrityError)
    assert store.weights(sha256(b"other")) is None


def test_weights_that_were_damaged_in_the_database_are_not_used(open_store: OpenStore) -> None:
    store = open_store()
    identity = store.fleet().weights
    with store.database.transaction() as connection:
        connection.execute(update(WEIGHTS).values(data=b"0"))
    with pytest.raises(StoreError) as caught:
        store.weights(identity)
    assert str(caught.value).endswith(f"server.db: the weights {identity[:16]}… are damaged in the database")


def test_a_lock_of_another_program_is_one_line(
    open_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aggregation_server.storage.database._LOCK_SECONDS", 0.1)
    store = open_store()
    with closing(sqlite3.connect(tmp_path / "server.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(
            StoreError, match=r"server\.db: the server's database failed: database is locked$"
        ) as caught:
            commit(store, b"one")
        assert not isinstance(caught.value.__cause__, IntegrityError)
        assert isinstance(caught.value.__cause__, OperationalError)
        assert store.fleet().number == 0, "who only reads waits for nobody"
    commit(store, b"one")


def test_a_transaction_that_reads_locks_nobody_out(open_store: OpenStore) -> None:
    store = open_store()
    with store.database.reading() as connection:
        connection.execute(WEIGHTS.select()).all()
        commit(store, b"one")
        assert len(connection.execute(WEIGHTS.select()).all()) == 1, "it sees the moment of its beginning"
    assert store.fleet().number == 1


def test_one_thread_at_a_time_commits(open_store: OpenStore) -> None:
    database = open_store().database
    with database.sole_committer() as first, database.sole_committer() as second:
        assert (first, second) == (True, False)
    with database.sole_committer() as again:
        assert again


def test_sqlite_is_durable(open_store: OpenStore) -> None:
    with open_store().database.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_a_database_of_another_model_is_refused_by_name(open_store: OpenStore, bundle: Bundle, store_url: str) -> None:
    open_store().close()
    model_id = bundle.manifest.model_id
    with pytest.raises(InputError) as caught:
        Store(store_url, "ab" * 16, b"initial")
    assert str(caught.value) == (
        f"{store_url.removeprefix('sqlite:///')}: this database belongs to the model {model_id}, the bundle is of"
        f" {'ab' * 16}; give another file"
    )
    open_store().close()  # the refusal holds no lock


def test_a_database_that_a_server_has_is_refused_by_name(open_store: OpenStore, store_url: str) -> None:
    open_store()
    with pytest.raises(InputError) as caught:
        open_store()
    assert str(caught.value) == (
        f"{store_url.removeprefix('sqlite:///')}: another server has this database; stop it, or share one with"
        " --db postgresql://…"
    )


def test_a_file_that_is_no_database_is_refused_by_name(store_url: str, tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    path.write_text("not a database, though it is long enough to have the header of one" * 20)
    with pytest.raises(InputError) as caught:
        Store(store_url, "ab" * 16, b"initial")
    assert str(caught.value) == f"{path}: can't open the server's database: file is not a database"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:////nowhere/at/all.db", "/nowhere/at/all.db: can't open the server's database: No such file"),
        ("server.db", "server.db: can't open the server's database: expected sqlite:///FILE or postgresql://…"),
        ("sqlite:///q.db?timeout=abc", "sqlite: can't open the server's database: could not convert string to float"),
        ("sqlite://", "sqlite: can't open the server's database: expected sqlite:///FILE or postgresql://…"),
        ("mysql://user:secret@host/db", "mysql: can't open the server's database: expected sqlite:///FILE or post"),
        ("postgresql://host:port/db", "postgresql: can't open the server's database: "),
        ("nosql://user:secret@host/db", "nosql: can't open the server's database: expected sqlite:///FILE or post"),
    ],
)
def test_a_url_that_can_not_be_opened_is_refused(url: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Store(url, "ab" * 16, b"initial")
    assert str(caught.value).startswith(message)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_new_database_is_its_owner_s_alone(open_store: OpenStore, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        commit(open_store(), b"weights")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("server.db*") if path.suffix != ".lock"}
    assert modes == {"server.db": 0o600, "server.db-wal": 0o600, "server.db-shm": 0o600}


def test_counts_add_up() -> None:
    left = Counts(checked_in=1, rejected={"a": 1, "b": 2}, late=4, upload_bytes=5)
    right = Counts(accepted=2, rejected={"b": 3}, refused={"c": 1}, reported=7, download_bytes=8)
    total = Counts(1, 2, {"a": 1, "b": 5}, 7, 4, {"c": 1}, 5, 8)
    assert left + right == right + left == total
    assert left + Counts() == left
    assert not Counts() and left
    left.reject("a")
    left.refuse("z")
    assert (left.rejected, left.refused) == ({"a": 2, "b": 2}, {"z": 1})
