"""`LocalStore`: a device's own examples, which an app adds and deletes while rounds go on.

    with LocalStore(Path("examples.db"), ExampleTypes.of(manifest)) as store:
        store.add(x, y)

An example is never changed, and its id never used again. docs/device.md says what is promised.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from device_runtime.bundle import Manifest
from device_runtime.errors import InputError
from device_runtime.examples import Examples, ExampleTypes, NoExamplesError
from device_runtime.slots import Slots
from device_runtime.store_file import StoreFile
from device_runtime.tensors import TensorSpec

if TYPE_CHECKING:
    import sqlite3

_CHECKSUM = 4  # bytes of CRC-32 that follow x and y in a slot
_LARGEST_ID = 2**63 - 1


@dataclass(frozen=True)
class Limits:
    """What a store may hold; None is no limit.

    Attributes:
        max_age: seconds since an example was added, by the device's clock.
        max_bytes: of the file and what lies beside it, when a call is over.
        max_examples: their number.
    """

    max_age: float | None = None
    max_bytes: int | None = None
    max_examples: int | None = None


@dataclass(frozen=True)
class Added:
    """What `LocalStore.add` did: the ids of the examples that it added and kept, and how many it dropped."""

    ids: range
    dropped: int


@dataclass(frozen=True)
class Info:
    """Number of examples, bytes on the disk, when the oldest and newest were added (seconds since 1970), limits."""

    examples: int
    bytes: int
    oldest: float | None
    newest: float | None
    limits: Limits


class LocalStore:
    """A store of examples; to be used by one thread, and by any number of objects and processes at once.

    Args:
        path: the file; SQLite keeps ``-wal`` and ``-shm`` beside it.
        types: of the examples, where the store may have to be made; one that is there must have the same.
        seconds: how long to wait for another process that has it locked.
        clock: seconds since 1970.

    Raises:
        InputError: there is no such store, or it is another program's, or of other types, or can't be used.
        IntegrityError: it is damaged.
    """

    def __init__(
        self,
        path: Path,
        types: ExampleTypes | None = None,
        seconds: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self._clock = clock

        def create(sql: sqlite3.Connection) -> None:
            assert types is not None
            sql.execute("INSERT INTO settings VALUES ('types', ?)", [json.dumps(types.to_json())])

        self._file = StoreFile(path, seconds, None if types is None else create)
        try:
            self.types = self._read_types()
            if types is not None:
                self.require(types, "the model")
        except BaseException:
            self.close()
            raise
        self._left = False  # whether the last `add` could not empty the journal
        self._sizes = _row_bytes(self.types.x), _row_bytes(self.types.y)
        self._slots = Slots(self._file.connection, sum(self._sizes) + _CHECKSUM)

    def __enter__(self) -> LocalStore:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; the last one of all processes puts everything into the one file."""
        self._file.connection.close()

    def require(self, types: ExampleTypes, whose: str) -> None:
        """Raise `InputError` unless examples of this store are of these types; the classes may be others."""
        if (types.x, types.y) != (self.types.x, self.types.y):
            raise InputError(f"{self.path}: holds examples of {self.types}, but {whose} takes {types}")

    def add(self, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Added:
        """Add examples x [n, …], y [n, …]: all of them or none, on the disk when the call returns.

        Expired examples, and the oldest where the store is full, are dropped. Where another process is reading them for
        longer than the time limit, their bytes stay in the journal until a later call, or the last connection's end.

        Raises:
            InputError: an array is not as the store's types say, or the store can't be written.
        """
        examples = self.types.check({"x": np.asarray(x), "y": np.asarray(y)}, str(self.path))
        with self._file.transaction():
            limits = self._limits()
            dropped = self._remove_expired(limits)
            last, more = self._slots.add(self._contents(examples), self._clock(), limits.max_bytes, limits.max_examples)
            dropped += more
            kept = min(len(examples), self._slots.count())
        try:
            self._tidy(dropped or self._left)
            self._left = False
        except InputError:  # the examples are added: who is told of a failure would add them again
            self._left = True
        return Added(range(last + 1 - kept, last + 1), dropped)

    def delete(self, ids: Iterable[int]) -> int:
        """Delete the examples with these ids; how many of them there were.

        Like each deletion here: when the call returns, their bytes are neither in the file nor in its journal.

        Raises:
            InputError: the store can't be written; or the examples are deleted, but another process is still
                reading an earlier state, so that their bytes are in the journal yet.
        """
        with self._file.transaction():
            number = sum(self._slots.remove("id = ?", [i]) for i in set(map(int, ids)) if 0 < i <= _LARGEST_ID)
            self._slots.fit(None, None)
        self._tidy(number)
        return number

    def delete_older_than(self, age: float) -> int:
        """Delete the examples that were added more than `age` seconds ago; how many they were."""
        with self._file.transaction():
            number = self._slots.remove("added < ?", [self._clock() - age])
            self._slots.fit(None, None)
        self._tidy(number)
        return number

    def clear(self) -> int:
        """Delete all examples; how many they were."""
        with self._file.transaction():
            number = self._slots.clear()
        self._tidy(number)
        return number

    def expire(self) -> int:
        """Delete what is older than the limit; how many they were."""
        age = self.limits.max_age
        return 0 if age is None else self.delete_older_than(age)

    def empty_journal(self) -> None:
        """Clear what a deletion has left that another reader, or a killed process, kept from its end."""
        self._file.empty_journal()

    @property
    def limits(self) -> Limits:
        """What the store may hold, whoever adds to it."""
        with self._file.explained():
            return self._limits()

    def set_limits(self, limits: Limits) -> int:
        """Change the limits, and drop at once what is beyond them; how many these are.

        Raises:
            InputError: a limit leaves no room for one example.
        """
        least = self._slots.least_bytes
        if limits.max_bytes is not None and limits.max_bytes < least:
            raise InputError(f"{self.path}: a limit of {limits.max_bytes} bytes; expected at least {least}")
        if limits.max_examples is not None and limits.max_examples < 1:
            raise InputError(f"{self.path}: a limit of {limits.max_examples} examples; expected at least 1")
        if limits.max_age is not None and not limits.max_age > 0:
            raise InputError(f"{self.path}: a limit of {limits.max_age} seconds; expected more than 0")
        with self._file.transaction() as sql:
            sql.execute("INSERT OR REPLACE INTO settings VALUES ('limits', ?)", [json.dumps(asdict(limits))])
            number = self._remove_expired(limits) + self._slots.fit(limits.max_bytes, limits.max_examples)
        self._tidy(number)
        return number

    def snapshot(self, manifest: Manifest, through: int | None = None) -> Examples:
        """All examples in the order of their ids, as they were at one moment, whatever is added meanwhile.

        Args:
            manifest: of the bundle that they are for.
            through: leave out those with a greater id; see `Examples.last`.

        Raises:
            NoExamplesError: there is none.
            InputError: the bundle takes others.
            IntegrityError: the store is damaged.
        """
        types = ExampleTypes.of(manifest)
        self.require(types, "the bundle")
        last = 0
        with self._file.transaction("DEFERRED") as sql:
            chosen = [self._oldest_time(), _LARGEST_ID if through is None else through]
            (count,) = sql.execute("SELECT count(*) FROM examples WHERE added >= ? AND id <= ?", chosen).fetchone()
            if count == 0:
                raise NoExamplesError(
                    f"{self.path}: holds no examples to train on; 'pocketfed-device data add' adds some"
                )
            x, y = (_empty(spec, count) for spec in (self.types.x, self.types.y))
            into_x, into_y = (array.reshape(-1).view(np.uint8).data for array in (x, y))
            query = (
                "SELECT e.id, s.content FROM examples e LEFT JOIN slots s USING (slot)"
                " WHERE e.added >= ? AND e.id <= ? ORDER BY e.id"
            )
            number, (of_x, of_y) = 0, self._sizes
            for number, (last, content) in enumerate(sql.execute(query, chosen), 1):
                if number > count or not self._is_whole(content):
                    raise self._file.damaged(f"the example with the id {last}")
                into_x[(number - 1) * of_x : number * of_x] = content[:of_x]
                into_y[(number - 1) * of_y : number * of_y] = content[of_x : of_x + of_y]
            if number != count:
                raise self._file.damaged(f"{count} examples, of which {number} can be read")
        fields = {spec.name: a.astype(spec.dtype, copy=False) for spec, a in ((types.x, x), (types.y, y))}
        return types.check(fields, str(self.path), last)

    def count(self) -> int:
        """How many examples a snapshot would have now; those that have expired are not among them."""
        with self._file.transaction("DEFERRED") as sql:
            (count,) = sql.execute("SELECT count(*) FROM examples WHERE added >= ?", [self._oldest_time()]).fetchone()
            return int(count)

    def info(self) -> Info:
        """How much the store holds."""
        with self._file.transaction("DEFERRED") as sql:
            count, oldest, newest = sql.execute("SELECT count(*), min(added), max(added) FROM examples").fetchone()
            return Info(count, self._bytes(), oldest, newest, self._limits())

    def _tidy(self, deleted: int) -> None:
        """Empty the journal where deleted examples may be in it, or where it takes too much."""
        most = self.limits.max_bytes
        if deleted or (most is not None and self._bytes() > most):
            self._file.empty_journal()

    def _bytes(self) -> int:
        beside = (Path(f"{self.path}{suffix}") for suffix in ("", "-wal", "-shm"))
        return sum(path.stat().st_size for path in beside if path.exists())

    def _setting(self, name: str) -> Any:
        found = self._file.connection.execute("SELECT value FROM settings WHERE name = ?", [name]).fetchone()
        try:
            return None if found is None else json.loads(found[0])
        except (ValueError, TypeError):
            raise self._file.damaged(f"its setting {name!r}") from None

    def _read_types(self) -> ExampleTypes:
        with self._file.explained():
            return ExampleTypes.from_json(self._setting("types"), f"{self.path}: types")

    def _limits(self) -> Limits:
        value = self._setting("limits")
        try:
            return Limits(**value or {})
        except TypeError:
            raise self._file.damaged("its setting 'limits'") from None

    def _oldest_time(self) -> float:
        """When an example was added at the earliest that has not expired."""
        age = self._limits().max_age
        return 0.0 if age is None else self._clock() - age

    def _remove_expired(self, limits: Limits) -> int:
        return 0 if limits.max_age is None else self._slots.remove("added < ?", [self._clock() - limits.max_age])

    def _contents(self, examples: Examples) -> Iterator[bytes]:
        x, y = (array.astype(array.dtype.newbyteorder("<"), copy=False) for array in (examples.x, examples.y))
        for row in range(len(examples)):
            content = x[row].tobytes() + y[row].tobytes()
            yield content + zlib.crc32(content).to_bytes(_CHECKSUM, "little")

    def _is_whole(self, content: object) -> bool:
        if not isinstance(content, bytes) or len(content) != sum(self._sizes) + _CHECKSUM:
            return False
        return zlib.crc32(content[:-_CHECKSUM]).to_bytes(_CHECKSUM, "little") == content[-_CHECKSUM:]


def _row_bytes(spec: TensorSpec) -> int:
    return replace(spec, shape=spec.shape[1:]).size * np.dtype(spec.dtype).itemsize


def _empty(spec: TensorSpec, count: int) -> npt.NDArray[Any]:
    return np.empty((count, *(d for d in spec.shape[1:] if d is not None)), np.dtype(spec.dtype).newbyteorder("<"))
