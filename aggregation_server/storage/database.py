"""An open database: SQLite in a file, or PostgreSQL by URL; its transactions, locks and errors."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from aggregation_server.storage.migrations import upgrade
from device_runtime.errors import InputError, NetworkError

# A lock that somebody else holds is waited for while nothing else is answered: not for long.
_LOCK_SECONDS = 5.0
# A server that hangs, or whose machine is gone, loses its locks after so long.
_HUNG_SECONDS = 15
_LONGEST_COMMIT_SECONDS = 300
# What was used last is used next: each connection has caches of its own.
_POOL = {"pool_size": 5, "max_overflow": 45, "pool_timeout": _LOCK_SECONDS, "pool_use_lifo": True}
_CACHE_KB = 1024  # of each connection with SQLite: they fill up slowly, and would be 10 MB in the end
# PostgreSQL's advisory locks.
_COMMIT_LOCK = 0x706F_636B
_START_LOCK = 0x706F_636C

_EXPECTED = "expected sqlite:///FILE or postgresql://…"
_IN_MEMORY = (None, "", ":memory:")


class StoreError(NetworkError):
    """The database did not take or give what it was asked for; the state in it is the old one."""


class Database:
    """Transactions on one database.

    Args:
        url: an SQLAlchemy URL, such as ``sqlite:///server.db`` or ``postgresql://user@host/fleet``.

    Attributes:
        name: what messages call it: its file, or its URL without the password.
        shared: whether other servers may change it.

    Raises:
        InputError: it can't be opened or brought up to date, or another server has it.
    """

    def __init__(self, url: str) -> None:
        self._exits = ExitStack()
        self._engine, self.name = _engine(url)
        self._exits.callback(self._engine.dispose)
        self._sqlite = self._engine.dialect.name == "sqlite"
        self.shared = not self._sqlite
        self._committing = threading.Lock()
        try:
            if self._sqlite:
                self._exits.enter_context(_alone(Path(str(self._engine.url.database)).resolve(), self.name))
            try:
                upgrade(self._engine)
            except (SQLAlchemyError, ValueError, OSError) as error:
                raise InputError(f"{self.name}: can't open the server's database: {reason(error)}") from None
        except BaseException:
            self.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction that may write; it is committed at the end of the context, or nothing of it happened.

        Raises:
            StoreError: the database failed.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(f"{self.name}: the server's database failed: {reason(error)}") from error

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads, all of it at one moment, and waits for nobody.

        Raises:
            StoreError: the database failed.
        """
        # SQLite reads at one moment in any case, and knows no such level.
        level = {"isolation_level": "REPEATABLE READ"} if self.shared else {}
        try:
            with self._engine.connect().execution_options(reading=True, **level) as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(f"{self.name}: the server's database failed: {reason(error)}") from error

    @contextmanager
    def sole_committer(self) -> Iterator[bool]:
        """Whether nobody else commits a round meanwhile; the right ends with the context, or with this process."""
        if self._sqlite:  # one process has the file
            with ExitStack() as stack:
                free = self._committing.acquire(blocking=False)
                if free:
                    stack.callback(self._committing.release)
                yield free
            return
        try:
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                lock = {"key": _COMMIT_LOCK}
                connection.execute(text(f"SET idle_session_timeout = '{_LONGEST_COMMIT_SECONDS}s'"))
                free = bool(connection.execute(text("SELECT pg_try_advisory_lock(:key)"), lock).scalar())
                try:
                    yield free
                finally:
                    with suppress(SQLAlchemyError):
                        if free:  # at once: PostgreSQL may hear late that the session has ended
                            connection.execute(text("SELECT pg_advisory_unlock(:key)"), lock)
                    with suppress(SQLAlchemyError):
                        connection.invalidate()  # the lock ends with its session, whatever state that is in
        except SQLAlchemyError as error:
            raise StoreError(f"{self.name}: the server's database failed: {reason(error)}") from error

    def wait_for_starts(self, connection: Connection) -> None:
        """Do what a start does in a new database only when no other server does: until the transaction's end."""
        if not self._sqlite:
            connection.execute(text("SET LOCAL lock_timeout = '60s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _START_LOCK})

    def close(self) -> None:
        self._exits.close()


def reason(error: BaseException) -> str:
    """The driver's own words, in one line, without the statement and the link that SQLAlchemy adds."""
    return (str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__])[0]


def _url(url: str) -> URL:
    try:
        return make_url(url)
    except ArgumentError:  # it is no URL at all, such as a file's name
        raise ValueError(_EXPECTED) from None


def _engine(url: str) -> tuple[Engine, str]:
    try:
        parsed: URL = _url(url)
        name = parsed.render_as_string(hide_password=True)
        if parsed.drivername in ("postgresql", "postgres"):  # the driver that is installed
            parsed = parsed.set(drivername="postgresql+psycopg")
        sqlite = parsed.get_backend_name() == "sqlite"
        if parsed.get_backend_name() not in ("sqlite", "postgresql") or (sqlite and parsed.database in _IN_MEMORY):
            raise ValueError(_EXPECTED)
        arguments = {"timeout": _LOCK_SECONDS} if sqlite else {"connect_timeout": 10, "tcp_user_timeout": 10_000}
        engine = create_engine(parsed, connect_args=arguments, pool_pre_ping=not sqlite, **_POOL)
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise InputError(f"{url.partition(':')[0]}: can't open the server's database: {reason(error)}") from None
    if not sqlite:
        event.listen(engine, "connect", _make_impatient)
        return engine, name
    event.listen(engine, "connect", _make_durable)
    event.listen(engine, "begin", _begin)
    return engine, parsed.database or url


def _make_durable(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # `_begin` begins, not the driver
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # a commit that was reported survives a loss of power
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA cache_size=-{_CACHE_KB}")
    cursor.close()


def _make_impatient(connection: Any, _record: object) -> None:
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = '{_LOCK_SECONDS:g}s'")
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{_HUNG_SECONDS}s'")
        cursor.execute("SET synchronous_commit = on")
    connection.autocommit = False


def _begin(connection: Connection) -> None:
    # What is read for writing is locked from the start: a transaction that has read can't be told to begin anew.
    reading = connection.get_execution_options().get("reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


@contextmanager
def _alone(path: Path, name: str) -> Iterator[None]:
    """Whoever serves an SQLite file has it for itself; a new one, and what SQLite puts beside it, is its owner's."""
    try:
        lock: IO[bytes] = Path(f"{path}.lock").open("ab")  # noqa: SIM115 - closed below
        path.touch(0o600)
    except OSError as error:
        raise InputError(f"{name}: can't open the server's database: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{name}: another server has this database; stop it, or share one with --db postgresql://…"
            ) from None
        yield
