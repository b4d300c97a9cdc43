"""The database: what it remembers, what it refuses, and what a crash in the middle leaves."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from aggregation_server.history import Counts, RoundRecord
from aggregation_server.store import ConflictError, Store, StoreError
from device_runtime.bundle import Bundle
from device_runtime.errors import InputError
from device_runtime.tensors import sha256
from device_runtime.weights import dump_weights

OpenStore = Callable[..., Store]


def committed(number: int, data: bytes) -> RoundRecord:
    counts = Counts(checked_in=3, rejected={"cohort_full": 1}, reported=2, upload_bytes=99)
    return RoundRecord(number, "committed", sha256(data), 10.0, 12.0, 2.0, "", 0.25, 40, 2, counts)


def test_a_new_database_holds_the_initial_weights_as_round_0(open_store: OpenStore, bundle: Bundle) -> None:
    initial = dump_weights(bundle.initial_weights(), bundle.manifest.tensors)
    store = open_store()
    assert store.latest() == (0, initial)
    assert store.weights(sha256(initial)) == initial
    assert [(record.number, record.outcome, record.weights) for record in store.history()] == [
        (0, "committed", sha256(initial))
    ]


def test_what_was_committed_is_there_when_it_is_opened_again(open_store: OpenStore) -> None:
    first = open_store()
    abandoned = RoundRecord(1, "abandoned", first.history()[0].weights, 1.0, 2.0, 1.0, "reporting_timeout")
    first.abandon(abandoned)
    first.commit(committed(1, b"one"), b"one")
    first.commit(committed(2, b"two"), b"two")
    first.close()
    again = open_store()
    assert again.latest() == (2, b"two")
    assert again.history()[1:] == [abandoned, committed(1, b"one"), committed(2, b"two")]
    assert again.weights(sha256(b"one")) == b"one"
    assert again.weights(sha256(b"never")) is None


def test_an_abandoned_round_leaves_the_weights(open_store: OpenStore) -> None:
    store = open_store()
    before = store.latest()
    store.abandon(RoundRecord(1, "abandoned", sha256(before[1]), 1.0, 2.0))
    assert store.latest() == before


def test_a_round_that_moved_no_weight_commits(open_store: OpenStore) -> None:
    store = open_store()
    _, initial = store.latest()
    store.commit(committed(1, initial), initial)
    assert store.latest() == (1, initial)


def test_weights_are_written_before_the_round_and_a_crash_between_leaves_the_old_state(open_store: OpenStore) -> None:
    store = open_store()
    before = store.latest()
    written: list[str] = []

    def crash_at_the_round(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        written.append(statement.partition("(")[0].strip())
        if statement.startswith("INSERT INTO rounds"):
            raise KeyboardInterrupt

    event.listen(Engine, "before_cursor_execute", crash_at_the_round)
    try:
        with pytest.raises(KeyboardInterrupt):
            store.commit(committed(1, b"one"), b"one")
    finally:
        event.remove(Engine, "before_cursor_execute", crash_at_the_round)
    assert written[-2:] == ["INSERT INTO weights", "INSERT INTO rounds"]
    store.close()
    again = open_store()
    assert again.latest() == before
    assert again.weights(sha256(b"one")) is None


def test_a_second_server_on_one_database_can_not_commit_a_round_twice(open_store: OpenStore) -> None:
    first, second = open_store(), open_store()
    first.commit(committed(1, b"one"), b"one")
    with pytest.raises(ConflictError, match=r"server\.db: round 1 is committed already$"):
        second.commit(committed(1, b"other"), b"other")
    assert second.latest() == (1, b"one")


def test_other_initial_weights_are_taken_until_the_first_commit(
    open_store: OpenStore, bundle: Bundle, store_url: str
) -> None:
    open_store().close()
    model_id = bundle.manifest.model_id
    with closing(Store(store_url, model_id, b"from another export")) as store:
        assert store.latest() == (0, b"from another export")
        assert store.history()[0].weights == sha256(b"from another export")
        store.commit(committed(1, b"one"), b"one")
    with closing(Store(store_url, model_id, b"from a third export")) as store:
        assert store.latest() == (1, b"one")
        assert store.history()[0].weights == sha256(b"from another export")


def test_weights_that_were_damaged_in_the_database_are_not_used(open_store: OpenStore) -> None:
    store = open_store()
    identity = store.history()[0].weights
    with store._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE weights SET data = x'00'")
    message = rf"server\.db: the weights {identity[:16]}… are damaged in the database$"
    with pytest.raises(StoreError, match=message):
        store.latest()
    with pytest.raises(StoreError, match=message):
        store.weights(identity)


def test_a_lock_is_not_waited_for_for_long(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    with closing(sqlite3.connect(tmp_path / "server.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"server\.db: the server's database failed: database is locked$"):
            store.commit(committed(1, b"one"), b"one")
        assert other.execute("PRAGMA busy_timeout").fetchone() == (5000,)  # what it would be by default
        with store._engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 500
    store.commit(committed(1, b"one"), b"one")


def test_sqlite_is_durable(open_store: OpenStore) -> None:
    with open_store()._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_a_database_of_another_model_is_refused_by_name(
    open_store: OpenStore, bundle: Bundle, store_url: str, tmp_path: Path
) -> None:
    open_store()
    model_id = bundle.manifest.model_id
    with pytest.raises(InputError) as caught:
        Store(store_url, "ab" * 16, b"initial")
    assert str(caught.value) == (
        f"{tmp_path / 'server.db'}: this database belongs to the model {model_id}, the bundle is of {'ab' * 16};"
        " give another file"
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
        ("sqlite:////nowhere/at/all.db", "/nowhere/at/all.db: can't open the server's database: unable to open"),
        ("server.db", "server.db: can't open the server's database: Could not parse SQLAlchemy URL"),
        ("sqlite:///q.db?timeout=abc", "sqlite: can't open the server's database: could not convert string to float"),
        ("postgresql://host:port/db", "postgresql: can't open the server's database: "),
        ("nosql://user:secret@host/db", "nosql: can't open the server's database: Can't load plugin"),
    ],
)
def test_a_url_that_can_not_be_opened_is_refused(url: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Store(url, "ab" * 16, b"initial")
    assert str(caught.value).startswith(message)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
