"""A population on disk, of which a client's examples are read when they are asked for: as large as the disk."""

from __future__ import annotations

import hashlib
import itertools
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.errors import InputError
from device_runtime.examples import Examples
from device_runtime.tensors import DTYPES, describe, is_finite
from tff_sim.client_names import ClientNames, ListedNames
from tff_sim.errors import DatasetError
from tff_sim.label_counts import Counts, count_labels
from tff_sim.population.base import Population
from tff_sim.population.format import DESCRIPTION, EXPECTED, TEXT, ArrayWriter, Description, StoredArray

_INT64 = "int64"
_ROWS = 1 << 16  # of labels that are looked at together


class StoredPopulation(Population):
    """Opens a folder that `write_population` wrote.

    In memory are a few bytes a client: offsets, names and their order. Pickling it, for other processes, is quick.

    Args:
        folder: the population's.

    Raises:
        DatasetError: a file is missing, damaged, or does not fit the others.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = folder = Path(folder)
        self.description = about = Description.load(folder)
        self._x = StoredArray.open(folder / "x.npy", about.x[0], (about.examples, *about.x[1]))
        self._y = StoredArray.open(folder / "y.npy", about.y[0], (about.examples, *about.y[1]))
        self._offsets = _whole(folder / "offsets.npy", _INT64, about.clients + 1)
        if (self._offsets[0], self._offsets[-1]) != (0, about.examples) or (np.diff(self._offsets) < 1).any():
            raise DatasetError(f"{folder / 'offsets.npy'}: not rising from 0 to {about.examples}; expected {EXPECTED}")
        order = _whole(folder / "order.npy", _INT64, about.clients)
        if not _counts_once(order):
            raise DatasetError(f"{folder / 'order.npy'}: not each client's number once; expected {EXPECTED}")
        names = _whole(folder / "names.npy", TEXT, about.clients)
        if ((ordered := names[order])[1:] < ordered[:-1]).any():
            raise DatasetError(f"{folder / 'order.npy'}: it does not sort the names; expected {EXPECTED}")
        self._names = ListedNames(names, order)
        if (fault := self._names.fault()) is not None:
            raise DatasetError(f"{folder / 'names.npy'}: {fault}; expected {EXPECTED}")
        self._label_counts = None
        if about.labels is not None:
            self._label_counts = StoredArray.open(folder / "label_counts.npy", "int32", (about.clients, about.labels))

    @property
    def names(self) -> ClientNames:
        return self._names

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        return np.diff(self._offsets)

    @property
    def label_counts(self) -> Counts | None:
        """Read anew each time, 4 bytes for each client and label."""
        if self._label_counts is None:
            return None
        counts = self._label_counts.rows(0, len(self))
        if (counts < 0).any() or (
            counts.sum(axis=1, dtype=np.int64) != self.sizes * math.prod(self._y.shape[1:])
        ).any():
            raise DatasetError(f"{self._label_counts.path}: not as many labels as clients have; expected {EXPECTED}")
        return counts

    @property
    def label_bounds(self) -> tuple[int, int] | None:
        labels = self.description.labels
        if labels is not None:
            return 0, labels - 1
        if self._y.dtype.kind != "i":
            return None
        # Too many for the table, or negative: all are read, some at a time.
        bounds = [(int(part.min()), int(part.max())) for part in self._label_parts() if part.size]
        return (min(low for low, _ in bounds), max(high for _, high in bounds)) if bounds else None

    @property
    def identity(self) -> str | None:
        return self.description.identity

    def _label_parts(self) -> Iterator[npt.NDArray[Any]]:
        for first in range(0, self._y.shape[0], _ROWS):
            yield self._y.rows(first, min(first + _ROWS, self._y.shape[0]))

    def examples(self, number: int) -> Examples:
        """As of every population; values are looked at here, for all of them may be more than memory holds.

        Raises:
            DatasetError: a value is not finite, or a label is none of the description's; it names file and client.
        """
        first, last = int(self._offsets[number]), int(self._offsets[number + 1])
        found = Examples(self._x.rows(first, last), self._y.rows(first, last))
        whose = f"client {self._names.name(number)!r}"
        _require_finite(self._x.path, found.x, whose)
        _require_finite(self._y.path, found.y, whose)
        labels = self.description.labels
        if labels is not None and not 0 <= found.y.min() <= found.y.max() < labels:
            raise DatasetError(
                f"{self._y.path}: {whose} has labels from {found.y.min()} to {found.y.max()}; by {DESCRIPTION} expected"
                f" 0 to {labels - 1}: write it again"
            )
        return found

    def test(self) -> Examples | None:
        """What to test the global model with; None where the folder has none; errors as of `examples`."""
        about, tests = self.description, self.description.tests
        if not tests:
            return None
        x = StoredArray.open(self.folder / "test_x.npy", about.x[0], (tests, *about.x[1]))
        y = StoredArray.open(self.folder / "test_y.npy", about.y[0], (tests, *about.y[1]))
        found = Examples(x.rows(0, tests), y.rows(0, tests))
        for array, values in ((x, found.x), (y, found.y)):
            _require_finite(array.path, values, "the test set")
        return found


def write_population(
    folder: Path | str,
    clients: Iterable[tuple[str, Examples]] | Mapping[str, Examples],
    test: Examples | None = None,
    name: str = "population",
) -> StoredPopulation:
    """Write a population, one client after the other, of which memory holds no more than one.

    Args:
        folder: to make; it must not exist. What an interrupted writing left in ``FOLDER.new`` is removed.
        clients: names, as devices check in with, and at least one example each, all of one type and shape; pairs, or a
            mapping.
        test: to test the global model with.
        name: of the data set.

    Raises:
        InputError: the folder exists, can't be written, a name is not allowed or there twice, or a client's examples
            are of another type than the first's.
    """
    folder = Path(folder)
    if folder.exists():
        raise InputError(f"{folder}: exists already, so that it is not overwritten; choose another folder")
    beside = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        _write(beside, clients.items() if isinstance(clients, Mapping) else clients, test, name)
        beside.replace(folder)
    except OSError as error:
        raise InputError(f"{folder}: can't write it: {error.strerror}; choose another folder, or make room") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return StoredPopulation(folder)


def _write(folder: Path, clients: Iterable[tuple[str, Examples]], test: Examples | None, name: str) -> None:
    entries = iter(clients)
    first = next(entries, None)
    if first is None:
        raise InputError("can't write a population: it needs at least one client")
    model = first[1]
    x, y = (
        ArrayWriter(folder / f"{part}.npy", array.dtype, array.shape[1:])
        for part, array in (("x", model.x), ("y", model.y))
    )
    names: list[bytes] = []
    ends = [0]
    largest = 0
    digest = hashlib.sha256()
    try:
        for client, examples in itertools.chain([first], entries):
            _require_like(client, examples, model)
            names.append(client.encode())
            digest.update(examples.identity.encode())
            x.append(examples.x)
            y.append(examples.y)
            ends.append(x.rows)
            largest = max(largest, int(examples.y.max())) if examples.y.size else largest
    finally:
        x.close()
        y.close()
    offsets, listed = np.array(ends, np.int64), ListedNames(np.array(names, np.bytes_))
    if (fault := listed.fault()) is not None:
        raise InputError(f"can't write a population: {fault}")
    counts = None
    if model.y.dtype.kind == "i":
        stored = StoredArray.open(folder / "y.npy", str(model.y.dtype), (x.rows, *model.y.shape[1:]))
        counts = count_labels(offsets, stored.rows, largest)
    arrays: dict[str, npt.NDArray[Any]] = {"offsets": offsets, "names": listed.array()}
    arrays["order"] = np.asarray(listed.order, np.int64)
    if counts is not None:
        arrays["label_counts"] = counts
    if test is not None:
        _require_like("the test examples", test, model)
        arrays |= {"test_x": test.x, "test_y": test.y}
    for title, array in arrays.items():
        np.save(folder / f"{title}.npy", array, allow_pickle=False)
    description = Description(
        name=name,
        clients=len(names),
        examples=x.rows,
        tests=0 if test is None else len(test),
        x=(str(model.x.dtype), model.x.shape[1:]),
        y=(str(model.y.dtype), model.y.shape[1:]),
        labels=None if counts is None else counts.shape[1],
        identity=digest.hexdigest(),
    )
    (folder / DESCRIPTION).write_bytes(description.dump())


def _require_like(client: str, examples: Examples, model: Examples) -> None:
    x, y = examples.x, examples.y
    if len(x) != len(y) or len(x) == 0:
        raise InputError(f"{client}: {len(x)} rows of x and {len(y)} of y; expected as many of both, at least one")
    for name, array, wanted in (("x", x, model.x), ("y", y, model.y)):
        if str(array.dtype) not in DTYPES:
            raise InputError(f"{client}: {name} is {describe(array)}; expected {' or '.join(DTYPES)}")
        if array.dtype != wanted.dtype or array.shape[1:] != wanted.shape[1:]:
            raise InputError(f"{client}: {name} is {describe(array)}; expected the first client's {describe(wanted)}")
        if not is_finite(array):
            raise InputError(f"{client}: {name} holds values that are not finite; leave those examples out")


def _require_finite(path: Path, values: npt.NDArray[Any], whose: str) -> None:
    if not is_finite(values):
        raise DatasetError(f"{path}: {whose} has values that are not finite: write it again without those examples")


def _counts_once(order: npt.NDArray[np.int64]) -> bool:
    """Whether each number from 0 to the last is there once."""
    count = len(order)
    return bool(0 <= order.min() <= order.max() < count and (np.bincount(order, minlength=count) == 1).all())


def _whole(path: Path, dtype: str, count: int) -> npt.NDArray[Any]:
    return StoredArray.open(path, dtype, (count,)).rows(0, count)
