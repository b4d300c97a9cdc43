"""The files of a population on disk: arrays of all clients' examples, one client after the other.

    population.json   format, name, numbers, types, SHA-256 of the clients' examples
    x.npy, y.npy      features [n, …] and labels [n, …]
    offsets.npy       client k has the examples from offsets[k] on, below offsets[k + 1]; int64 [K + 1]
    names.npy         of the clients, in UTF-8, bytes [K]; order.npy: the numbers that sort them, int64 [K]
    label_counts.npy  int32 [K, L]; missing where labels are not classes, or too many
    test_x.npy, test_y.npy   to test the global model with; missing where there are none

population.json is written last: a folder without it is none, or one that is not finished.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.tensors import DTYPES
from tff_sim.errors import DatasetError

_npy: Any = np.lib.format

_LARGEST = 2**40  # of numbers that would be sizes of files
_MOST_DIMENSIONS = 32  # that NumPy 1 knows, the first of an array included

FORMAT = 1
TEXT = "S"
"""The dtype of bytes of any width."""
DESCRIPTION = "population.json"
EXPECTED = "a population that 'pocketfed data export --packed' or tff_sim.population.write_population wrote"


@dataclass(frozen=True)
class Description:
    """What population.json says.

    Attributes:
        name: of the data set.
        clients, examples: K and n.
        tests: number of examples to test with; 0 where there are none.
        x, y: dtype and shape of one example.
        labels: L; None where there is no table of them.
        identity: SHA-256 of the clients' `Examples.identity`, one after the other, in hex; None where an earlier
            version wrote them.
    """

    name: str
    clients: int
    examples: int
    tests: int
    x: tuple[str, tuple[int, ...]]
    y: tuple[str, tuple[int, ...]]
    labels: int | None
    identity: str | None = None

    def dump(self) -> bytes:
        content = {
            "format": FORMAT,
            "name": self.name,
            "clients": self.clients,
            "examples": self.examples,
            "tests": self.tests,
            "x": {"dtype": self.x[0], "shape": list(self.x[1])},
            "y": {"dtype": self.y[0], "shape": list(self.y[1])},
            "labels": self.labels,
            "identity": self.identity,
        }
        return (json.dumps(content, indent=2) + "\n").encode()

    @classmethod
    def load(cls, folder: Path) -> Description:
        """Read and check a folder's; `DatasetError` where it is missing or something else."""
        if not folder.is_dir():
            raise DatasetError(f"{folder}: no such folder; expected {EXPECTED}")
        path = folder / DESCRIPTION
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise DatasetError(
                f"{path}: no such file: the folder is no population, or not finished; expected {EXPECTED}"
            ) from None
        except (OSError, ValueError, RecursionError):
            raise DatasetError(f"{path}: it can't be read, or is damaged; expected {EXPECTED}") from None
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise DatasetError(f"{path}: format {ascii(found)[:20]}; this version reads {FORMAT}: write it again")
        match content:
            case {
                "name": str(name),
                "clients": int(clients),
                "examples": int(examples),
                "tests": int(tests),
                "x": x,
                "y": y,
                "labels": int() | None as labels,
            } if 1 <= clients <= examples < _LARGEST and 0 <= tests < _LARGEST and (labels is None or labels > 0):
                identity = _identity(path, content.get("identity"))
                return cls(name, clients, examples, tests, _element(path, x), _element(path, y), labels, identity)
        raise DatasetError(f"{path}: a field is missing or out of its range; expected {EXPECTED}")


def _element(path: Path, value: Any) -> tuple[str, tuple[int, ...]]:
    match value:
        case {"dtype": str(dtype), "shape": list(shape)} if (
            dtype in DTYPES
            and len(shape) < _MOST_DIMENSIONS
            and all(type(size) is int and size > 0 for size in shape)
            and math.prod(shape) < _LARGEST
        ):
            return dtype, tuple(shape)
    raise DatasetError(f"{path}: 'x' or 'y' is no dtype and shape of an example; expected {EXPECTED}")


def _identity(path: Path, value: Any) -> str | None:
    if value is None or (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)):
        return value
    raise DatasetError(f"{path}: 'identity' is no SHA-256 in hex; expected {EXPECTED}")


@dataclass(frozen=True)
class StoredArray:
    """A ``.npy`` file of rows that are read as they are needed, and never mapped.

    Mapped pages count as the process's memory, and a file that is cut short meanwhile would end the process.

    Attributes:
        path: the file.
        dtype, shape: of the whole array.
        start: of its bytes in the file.
    """

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int

    @classmethod
    def open(cls, path: Path, dtype: str, shape: tuple[int, ...]) -> StoredArray:
        """Look at a file's header and size; `DatasetError` where it is not of this type and shape."""
        try:
            with path.open("rb") as file:
                version = _npy.read_magic(file)
                read = {(1, 0): _npy.read_array_header_1_0, (2, 0): _npy.read_array_header_2_0}[version]
                found_shape, fortran, found_dtype = read(file)
                start = file.tell()
            size = path.stat().st_size
        except FileNotFoundError:
            raise DatasetError(f"{path}: no such file; expected {EXPECTED}") from None
        except Exception:  # a damaged header ends in any of a dozen kinds
            raise DatasetError(f"{path}: it can't be read, or is no .npy file; expected {EXPECTED}") from None
        wanted = np.dtype(dtype)
        fits = found_dtype == wanted or (dtype == TEXT and found_dtype.kind == wanted.kind and found_dtype.itemsize)
        if fortran or not fits or found_shape != shape:
            raise DatasetError(
                f"{path}: {found_dtype}[{', '.join(map(str, found_shape))}]; by {DESCRIPTION} it should be"
                f" {wanted}[{', '.join(map(str, shape))}]"
            )
        array = cls(path, found_dtype, shape, start)
        if size != start + shape[0] * array.row_bytes:
            raise DatasetError(
                f"{path}: {size} bytes; its header says {start + shape[0] * array.row_bytes}: write it again"
            )
        return array

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def rows(self, first: int, last: int) -> npt.NDArray[Any]:
        """The rows from `first` on, below `last`; `DatasetError` where the file has become shorter."""
        result = np.empty((last - first, *self.shape[1:]), self.dtype)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.start + first * self.row_bytes)
                view = result.reshape(-1).view(np.uint8).data
                while len(view) and (count := file.readinto(view)):
                    view = view[count:]
        except OSError as error:
            raise DatasetError(f"{self.path}: can't read it: {error.strerror}") from None
        if len(view):
            raise DatasetError(f"{self.path}: it has become shorter since it was opened: write it again")
        return result


class ArrayWriter:
    """Writes a ``.npy`` file row by row; how many rows there are is known at the end. A context manager."""

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._dtype, self._shape = dtype, shape
        self.rows = 0
        self._file = path.open("wb")
        self._header()

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Write some more."""
        self._file.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def close(self) -> None:
        self._file.seek(0)
        self._header()
        self._file.close()

    def _header(self) -> None:
        # NumPy leaves room in a header for the first dimension to grow, so that its length stays the same.
        description = {"descr": _npy.dtype_to_descr(self._dtype), "fortran_order": False}
        _npy.write_array_header_1_0(self._file, description | {"shape": (self.rows, *self._shape)})
