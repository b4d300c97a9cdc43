"""The server's memory: versions of the weights, and the rounds that made them, in a database.

SQLite by default, anything that SQLAlchemy speaks by URL. A version of the weights is written first and the
round that made it is marked committed after it, in one transaction, so that a crash at any instant leaves
either the old state or the new one. Only a committed round's weights are ever the state.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from sqlalchemy import (
    JSON,
    URL,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    insert,
    make_url,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from aggregation_server.history import Counts, RoundRecord
from device_runtime.errors import InputError, NetworkError
from device_runtime.tensors import sha256

_METADATA = MetaData()

_WEIGHTS = Table(
    "weights",
    _METADATA,
    Column("sha256", String(64), primary_key=True),
    Column("data", LargeBinary, nullable=False),
)

_ROUNDS = Table(
    "rounds",
    _METADATA,
    Column("id", Integer, primary_key=True),
    Column("number", Integer, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("weights", ForeignKey("weights.sha256"), nullable=False),
    Column("model_id", String(32), nullable=False),
    Column("started", Float, nullable=False),
    Column("ended", Float, nullable=False),
    Column("details", JSON, nullable=False),
)
_COMMITTED = _ROUNDS.c.outcome == "committed"

# Two servers on one database would each commit round n; the second one's commit fails here instead.
Index("one_commit_a_round", _ROUNDS.c.number, unique=True, sqlite_where=_COMMITTED, postgresql_where=_COMMITTED)

_DETAILS = ("seconds", "reason", "loss", "examples", "clients", "counts")


class StoreError(NetworkError):
    """The database did not take or give what it was asked for; the state in it is the old one."""


class ConflictError(StoreError):
    """The round is committed in the database already: by another server, or by a commit whose answer was lost."""


class Store:
    """An open database of one model."""

    def __init__(self, url: str, model_id: str, initial: bytes) -> None:
        """Open the database; a new one gets the initial weights as round 0.

        Args:
            url: an SQLAlchemy URL, such as ``sqlite:///server.db``.
            model_id: the manifest's; a database never mixes two models.
            initial: safetensors bytes of the weights that the first round starts from.

        Raises:
            InputError: the URL can't be opened, or the database belongs to another model.
        """
        self._model_id = model_id
        self._engine, self._name = _open(url)
        try:
            try:
                _METADATA.create_all(self._engine)
                found = self._found_model()
            except (SQLAlchemyError, ValueError) as error:
                raise InputError(f"{self._name}: can't open the server's database: {_reason(error)}") from None
            if found is None:
                now = time.time()
                self.commit(RoundRecord(0, "committed", sha256(initial), now, now), initial)
            elif found != model_id:
                raise InputError(
                    f"{self._name}: this database belongs to the model {found}, the bundle is of {model_id};"
                    " give another file"
                )
            elif self.latest()[0] == 0:
                self._start_from(initial)
        except BaseException:
            self.close()
            raise

    def latest(self) -> tuple[int, bytes]:
        """Number of the last committed round, and its weights' bytes."""
        query = select(_ROUNDS.c.number, _WEIGHTS.c.sha256, _WEIGHTS.c.data).join(_WEIGHTS).where(_COMMITTED)
        with self._transaction() as connection:
            row = connection.execute(query.order_by(_ROUNDS.c.number.desc()).limit(1)).one()
        return int(row.number), self._verified(row.sha256, row.data)

    def history(self) -> list[RoundRecord]:
        """All finished rounds from the first, round 0 included."""
        with self._transaction() as connection:
            rows = connection.execute(select(_ROUNDS).order_by(_ROUNDS.c.id)).mappings().all()
        return [
            RoundRecord(
                number=row["number"],
                outcome=row["outcome"],
                weights=row["weights"],
                started=row["started"],
                ended=row["ended"],
                **{**row["details"], "counts": Counts(**row["details"]["counts"])},
            )
            for row in rows
        ]

    def weights(self, identity: str) -> bytes | None:
        """The bytes whose SHA-256 is `identity`, or None where no committed round made them."""
        with self._transaction() as connection:
            data = connection.execute(select(_WEIGHTS.c.data).where(_WEIGHTS.c.sha256 == identity)).scalar()
        return None if data is None else self._verified(identity, data)

    def commit(self, record: RoundRecord, data: bytes) -> None:
        """Make `data` the state: store it, then mark the round committed.

        Raises:
            ConflictError: the round was committed before; the state may be another than this server's.
            StoreError: neither happened.
        """
        try:
            with self._transaction() as connection:
                self._insert_weights(connection, record.weights, data)
                self._insert(connection, record)
        except StoreError as error:
            if isinstance(error.__cause__, IntegrityError):
                raise ConflictError(f"{self._name}: round {record.number} is committed already") from error
            raise

    def abandon(self, record: RoundRecord) -> None:
        """Remember an abandoned round; the state stays as it was.

        Raises:
            StoreError: it could not be written.
        """
        with self._transaction() as connection:
            self._insert(connection, record)

    def close(self) -> None:
        self._engine.dispose()

    def _start_from(self, initial: bytes) -> None:
        """Before the first commit, the bundle's weights are the ones to start from, whatever an earlier one had."""
        with self._transaction() as connection:
            self._insert_weights(connection, sha256(initial), initial)
            connection.execute(update(_ROUNDS).where(_ROUNDS.c.number == 0).values(weights=sha256(initial)))

    def _verified(self, identity: str, data: bytes) -> bytes:
        if sha256(data) != identity:
            raise StoreError(f"{self._name}: the weights {identity[:16]}… are damaged in the database")
        return bytes(data)

    def _insert_weights(self, connection: Connection, identity: str, data: bytes) -> None:
        known = connection.execute(select(_WEIGHTS.c.sha256).where(_WEIGHTS.c.sha256 == identity)).scalar()
        if known is None:  # a round whose mean delta is zero makes no new version
            connection.execute(insert(_WEIGHTS).values(sha256=identity, data=data))

    def _insert(self, connection: Connection, record: RoundRecord) -> None:
        values = asdict(record)
        details = {name: values.pop(name) for name in _DETAILS}
        connection.execute(insert(_ROUNDS).values(**values, model_id=self._model_id, details=details))

    def _found_model(self) -> str | None:
        with self._engine.begin() as connection:
            return connection.execute(select(_ROUNDS.c.model_id).limit(1)).scalar()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(f"{self._name}: the server's database failed: {_reason(error)}") from error


def _open(url: str) -> tuple[Engine, str]:
    """The engine, and the name that messages give the database: its file, or its URL without the password."""
    try:
        parsed: URL = make_url(url)
        # A lock that another process holds is waited for here, while nothing else is answered: not for long.
        engine = create_engine(parsed, connect_args={"timeout": 0.5} if parsed.get_backend_name() == "sqlite" else {})
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise InputError(f"{url.partition(':')[0]}: can't open the server's database: {_reason(error)}") from None
    if engine.dialect.name != "sqlite":
        return engine, parsed.render_as_string(hide_password=True)
    event.listen(engine, "connect", _make_durable)
    return engine, parsed.database or url


def _make_durable(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # a commit that was reported survives a loss of power
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _reason(error: Exception) -> str:
    """The driver's own words, in one line, without the statement and the link that SQLAlchemy adds."""
    return (str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__])[0]
