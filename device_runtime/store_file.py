"""The SQLite file of a local store: how it is opened and made, and what its failures mean to a person.

WAL mode: one process writes while others read, and a transaction that ended is on the disk (``synchronous=FULL``).

`device_runtime.slots` says how examples lie in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from device_runtime.errors import InputError, IntegrityError, PocketfedError

try:
    import sqlite3
except ImportError:
    raise InputError("this Python is without SQLite; install its module sqlite3, or keep examples in .npz") from None

APPLICATION = 0x50464453  # "PFDS"
VERSION = 1
NEW_SLOTS = """CREATE TABLE "{}" (slot INTEGER PRIMARY KEY, content BLOB NOT NULL)"""
SCHEMA = (
    "CREATE TABLE settings (name TEXT PRIMARY KEY, value NOT NULL)",
    "CREATE TABLE examples (id INTEGER PRIMARY KEY AUTOINCREMENT, added REAL NOT NULL, slot INTEGER NOT NULL)",
    "CREATE TABLE free (slot INTEGER PRIMARY KEY)",
    NEW_SLOTS.format("slots"),
)
_SETTINGS = ("secure_delete=ON", "synchronous=FULL", "temp_store=MEMORY", "trusted_schema=OFF", "cell_size_check=ON")


class StoreFile:
    """A connection to the file; not to be shared by threads.

    Args:
        path: the file.
        seconds: how long to wait for another process that has it locked.
        create: what fills the settings of a new store; without it there has to be one.

    Raises:
        InputError, IntegrityError: see `explained`.
    """

    def __init__(self, path: Path, seconds: float, create: Callable[[sqlite3.Connection], None] | None = None) -> None:
        self.path = path
        self._seconds = seconds
        if create is not None:
            self._touch()
        elif not exists(path):
            raise InputError(f"{path}: no such store; 'pocketfed-device data add' makes one")
        with self.explained():
            address = f"{path.absolute().as_uri()}?mode=rw"
            self.connection = sqlite3.connect(address, timeout=seconds, isolation_level=None, uri=True)
        # Of a damaged file anything may be text; sqlite3 would put what it can't decode into its message.
        self.connection.text_factory = lambda data: data.decode(errors="replace")
        try:
            with self.explained():
                for setting in _SETTINGS:
                    self.connection.execute(f"PRAGMA {setting}")
                self._recognise(create)
        except BaseException:
            self.connection.close()
            raise

    @contextmanager
    def explained(self) -> Iterator[None]:
        """What SQLite says of a failure, in words that say what to do. None of them holds a value of an example."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._explain(str(error)) from None
        except UnicodeDecodeError:  # of a message with a piece of the damaged file
            raise self._explain("malformed") from None

    @contextmanager
    def transaction(self, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """All or nothing: whatever goes wrong inside, the store is as it was."""
        with self.explained():
            self.connection.execute(f"BEGIN {kind}")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException as error:
                if self.connection.in_transaction:  # a full disk has rolled it back already
                    self.connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):  # give back what the journal has taken of the disk
                    with suppress(sqlite3.Error):
                        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                raise

    def empty_journal(self) -> None:
        """Move everything from the journal into the file, and cut the journal to nothing.

        Raises:
            InputError: another process reads on, or an earlier state of the store, for longer than the time limit.
        """
        with self.explained():
            (busy, *_counts) = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise InputError(
                f"{self.path}: done, but another process has been reading for {self._seconds:g} seconds, so that"
                " deleted bytes are still in the journal beside it; 'pocketfed-device data expire' clears them later"
            )

    def _touch(self) -> None:
        """An empty file that only its owner may read; SQLite gives its journal the same rights."""
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            raise InputError(f"{self.path}: can't make a store there: {error.strerror}") from None

    def _recognise(self, create: Callable[[sqlite3.Connection], None] | None) -> None:
        if self._is_blank() and create is not None:
            self.connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            if self.connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
                raise InputError(f"{self.path}: this file system can't hold a store (SQLite has no WAL mode there)")
            with self.transaction() as sql:
                if self._is_blank():  # no other process was faster
                    for statement in SCHEMA:
                        sql.execute(statement)
                    create(sql)
                    sql.execute(f"PRAGMA application_id={APPLICATION}")
                    sql.execute(f"PRAGMA user_version={VERSION}")
        elif self._is_blank():
            raise InputError(f"{self.path}: an empty file; 'pocketfed-device data add' makes a store of it")
        marks = [self.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if marks[0] != APPLICATION:
            raise InputError(f"{self.path}: a database of another program; name a store that pocketfed-device made")
        if marks[1] != VERSION:
            raise InputError(f"{self.path}: a store of format {marks[1]}; this pocketfed-device reads format {VERSION}")
        if self._statements() != sorted(SCHEMA):
            raise IntegrityError(f"{self.path}: the store is damaged: its tables are not those of format {VERSION}")

    def _is_blank(self) -> bool:
        return self.connection.execute("PRAGMA application_id").fetchone()[0] == 0 and not self._statements()

    def _statements(self) -> list[str]:
        query = "SELECT sql FROM sqlite_master WHERE name NOT LIKE 'sqlite!_%' ESCAPE '!'"
        return sorted(str(statement) for (statement,) in self.connection.execute(query))

    def _explain(self, message: str) -> PocketfedError:
        if "locked" in message or "busy" in message:
            return InputError(
                f"{self.path}: another process has kept it locked for {self._seconds:g} seconds; try again"
            )
        if "full" in message:
            return InputError(f"{self.path}: no space is left on the device; the store is as it was: free some space")
        if "readonly" in message or "unable to open" in message:
            return InputError(f"{self.path}: this user can't write the file or its folder, which a store needs")
        if "not a database" in message:
            return IntegrityError(f"{self.path}: no store, or one whose beginning is damaged; name one, or add it anew")
        if "malformed" in message:
            return self.damaged("SQLite can't read it")  # its message may hold a piece of the file
        if "disk I/O" in message:
            return InputError(f"{self.path}: the disk can't be written or read ({message}); the store is as it was")
        return InputError(f"{self.path}: the store can't be used: {message}")

    def damaged(self, how: str) -> IntegrityError:
        """What to raise where the content is not what was written."""
        return IntegrityError(f"{self.path}: the store is damaged ({how}); move it away and add the examples again")


def exists(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no name of a file
        return False
