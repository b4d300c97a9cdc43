"""How examples lie in the tables of a store, so that what is deleted is gone.

SQLite's ``secure_delete`` overwrites a deleted row, but not the copies that it has left in a page where it moved the
row to a neighbouring one. So contents lie in rows of one size, *slots*, that never move: they are appended, overwritten
in place, and given up only with their whole table, whose pages SQLite overwrites. The table ``examples`` says which
slot is whose; it holds ids and times alone.

All methods are for within a transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from device_runtime.store_file import NEW_SLOTS

if TYPE_CHECKING:
    import sqlite3

PAGE = 4096  # bytes
_SHARED_MEMORY = 32_768  # bytes of the file beside the store by which its connections agree
_INDEX = 32  # bytes that an example may come to take in the table of ids
_SPARE = 1 << 20  # bytes of free slots that are kept for later examples


class Slots:
    """The tables `examples`, `slots` and `free` of a connection; a slot's content has `size` bytes."""

    def __init__(self, sql: sqlite3.Connection, size: int) -> None:
        self._sql = sql
        self._size = size
        self._room = _SHARED_MEMORY + PAGE * (4 + -(-size // PAGE))  # what the next example may take, at most
        self.least_bytes = _SHARED_MEMORY + PAGE * (16 + 2 * -(-size // PAGE))
        """The smallest limit in which an example has its place."""

    def add(
        self, contents: Iterable[bytes], now: float, max_bytes: int | None, max_examples: int | None
    ) -> tuple[int, int]:
        """Add examples, dropping the oldest wherever there is no room; the last one's id, and how many were dropped."""
        count, free = self.count(), self._number("SELECT count(*) FROM free")
        fresh = self._number("SELECT coalesce(max(slot), 0) + 1 FROM slots")
        last = dropped = 0
        for content in contents:
            full = max_examples is not None and count >= max_examples
            if not full and not free and self._has_room(max_bytes, count):
                slot, fresh = fresh, fresh + 1
                self._sql.execute("INSERT INTO slots VALUES (?, ?)", [slot, content])
            else:
                if not full and free:
                    slot, free = self._number("SELECT min(slot) FROM free"), free - 1
                    self._sql.execute("DELETE FROM free WHERE slot = ?", [slot])
                else:
                    slot = self._drop_oldest()
                    count, dropped = count - 1, dropped + 1
                self._sql.execute("UPDATE slots SET content = ? WHERE slot = ?", [content, slot])
            last = self._sql.execute("INSERT INTO examples (added, slot) VALUES (?, ?)", [now, slot]).lastrowid or 0
            count += 1
        return last, dropped + self.fit(max_bytes, max_examples)

    def count(self) -> int:
        """Number of examples."""
        return self._number("SELECT count(*) FROM examples")

    def remove(self, where: str, values: Sequence[float]) -> int:
        """Overwrite and free the examples that an SQL condition on `examples` selects; how many they were."""
        slots = f"SELECT slot FROM examples WHERE {where}"  # noqa: S608 - the conditions are this package's own
        sql = self._sql
        sql.execute(f"UPDATE slots SET content = zeroblob({self._size}) WHERE slot IN ({slots})", values)  # noqa: S608
        sql.execute(f"INSERT INTO free {slots}", values)
        return sql.execute(f"DELETE FROM examples WHERE {where}", values).rowcount  # noqa: S608

    def clear(self) -> int:
        """Give up all examples and their slots; how many they were."""
        count = self.count()
        for table in ("examples", "slots", "free"):
            self._sql.execute(f"DELETE FROM {table}")  # noqa: S608
        self._shorten()
        return count

    def fit(self, max_bytes: int | None, max_examples: int | None) -> int:
        """Drop the oldest until the file fits its limits, and shrink it where much is free; how many were dropped."""
        dropped = 0
        if max_examples is not None and self.count() > max_examples:
            dropped += self._remove_oldest(self.count() - max_examples)
        free = self._number("SELECT count(*) FROM free")
        if free * self._size > _SPARE and free > self.count():
            self._rewrite()
        while max_bytes is not None and (excess := self._bytes() - max_bytes) > 0:
            if self._number("SELECT count(*) FROM free"):
                self._rewrite()
            elif count := self.count():
                dropped += self._remove_oldest(min(count, 1 + count * excess // self._bytes()))
            else:
                break
        self._shorten()
        return dropped

    def _rewrite(self) -> None:
        """Copy what is in use to a new table and give up the old one, which takes as much again for a moment."""
        sql = self._sql
        sql.execute(NEW_SLOTS.format("fresh"))
        sql.execute("INSERT INTO fresh SELECT slot, content FROM slots WHERE slot NOT IN free ORDER BY slot")
        sql.execute("DROP TABLE slots")
        sql.execute("ALTER TABLE fresh RENAME TO slots")
        sql.execute("DELETE FROM free")

    def _shorten(self) -> None:
        """Cut unused pages off the file, as the last thing in a transaction.

        A page that is cut off and comes back within the same transaction brings its old content with it.
        """
        for _ in range(self._number("PRAGMA freelist_count")):  # Python's module takes one step of it: one page
            self._sql.execute("PRAGMA incremental_vacuum")

    def _has_room(self, max_bytes: int | None, count: int) -> bool:
        if max_bytes is None:
            return True
        return self._number("PRAGMA page_count") * PAGE + _INDEX * count + self._room <= max_bytes

    def _bytes(self) -> int:
        return (self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count")) * PAGE + _SHARED_MEMORY

    def _drop_oldest(self) -> int:
        """Forget the oldest example; its slot, which is to be overwritten."""
        identity, slot = self._sql.execute("SELECT id, slot FROM examples ORDER BY id LIMIT 1").fetchone()
        self._sql.execute("DELETE FROM examples WHERE id = ?", [identity])
        return int(slot)

    def _remove_oldest(self, number: int) -> int:
        return self.remove("id IN (SELECT id FROM examples ORDER BY id LIMIT ?)", [number])

    def _number(self, query: str) -> int:
        return int(self._sql.execute(query).fetchone()[0])
