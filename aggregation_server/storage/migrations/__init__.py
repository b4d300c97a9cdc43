"""The schema's history, one file a step in ``versions/``, run by Alembic when a server opens its database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, inspect, text

_FIRST = "0001"  # the schema of databases from before their versions were written down
_LOCK = 0x706F_636A


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the database to a version of the schema; a new one is made from nothing.

    Two servers that start at once do it one after the other.

    Raises:
        SQLAlchemyError: the database can't be read or written.
        ValueError: it is of a newer server.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    with _without_foreign_keys(engine) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL lock_timeout = '60s'"))  # another server may have much to carry over
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        config.attributes["connection"] = connection
        tables = inspect(connection).get_table_names()
        try:
            if "rounds" in tables and "alembic_version" not in tables:
                command.stamp(config, _FIRST)
            command.upgrade(config, revision)
        except CommandError as error:
            raise ValueError(f"made by a newer pocketfed than this one: update it ({error})") from None


@contextmanager
def _without_foreign_keys(engine: Engine) -> Iterator[Connection]:
    """A connection on which SQLite lets a table be replaced that others refer to; in a transaction it is too late."""
    with engine.connect() as connection:
        if engine.dialect.name != "sqlite":
            yield connection
            return
        cursor = connection.connection.cursor()
        before = cursor.execute("PRAGMA foreign_keys").fetchone()[0]
        cursor.execute("PRAGMA foreign_keys=OFF")
        try:
            yield connection
        finally:
            cursor.execute(f"PRAGMA foreign_keys={before}")
            cursor.close()
