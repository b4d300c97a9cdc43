"""Examples from a CSV file: a header, then a row an example; the features in C order, and a label."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.errors import InputError
from device_runtime.examples import ExampleTypes
from device_runtime.tensors import TensorSpec


def read_csv(path: Path, types: ExampleTypes, label: str = "y") -> dict[str, npt.NDArray[Any]]:
    """The arrays ``x`` and ``y`` of a file in UTF-8, of the shapes and dtypes that `types` say.

    Args:
        path: the file.
        types: of the examples; ``y`` is one number an example.
        label: the name of the column with the labels; all other columns are features, in the order of ``x``.

    Raises:
        InputError: the file can't be read, or a row is not as the header and the types say; the message names the
            file, the line and the column, but no value.
    """
    shape = tuple(size for size in types.x.shape[1:] if size is not None)
    if len(types.y.shape) != 1:
        raise InputError(f"{path}: a CSV file has one label a row, but y is {types.y}; use a .npz file")
    x, y = bytearray(), bytearray()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = next(rows, [])
            place = _label_place(path, header, label, math.prod(shape))
            for row in _filled(rows):
                where = f"{path}: line {rows.line_num}"
                if len(row) != len(header):
                    raise InputError(f"{where}: {len(row)} columns; expected {len(header)}, as in the header")
                y += _numbers([row.pop(place)], types.y, [label], where, types.classes)
                x += _numbers(row, types.x, header[:place] + header[place + 1 :], where)
    except OSError as error:
        raise InputError(f"{path}: can't read the examples: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a CSV file in UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}: line {rows.line_num}: {error}") from None
    if not y:
        raise InputError(f"{path}: no rows after the header; expected at least one")
    return {
        "x": np.frombuffer(x, types.x.dtype).reshape(-1, *shape),
        "y": np.frombuffer(y, types.y.dtype),
    }


def _label_place(path: Path, header: list[str], label: str, features: int) -> int:
    if header.count(label) != 1:
        raise InputError(f"{path}: line 1: expected a header with one column {label!r} for the labels (--label)")
    if len(header) != features + 1:
        raise InputError(f"{path}: line 1: {len(header) - 1} columns of features; expected {features}")
    return header.index(label)


def _filled(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    return (row for row in rows if row)


def _numbers(texts: list[str], spec: TensorSpec, names: list[str], where: str, classes: int | None = None) -> bytes:
    """The numbers as bytes of the spec's dtype."""
    whole = spec.dtype == "int32"
    parse = int if whole else float
    try:
        values = np.array(list(map(parse, texts)), np.float64)
    except (ValueError, OverflowError):
        values = np.array([_or_nan(parse, text) for text in texts], np.float64)
    with np.errstate(invalid="ignore"):
        fits = abs(values) < 2**31 if whole else abs(values) <= np.finfo(np.float32).max
        if classes is not None:
            fits &= (values >= 0) & (values < classes)
    if not fits.all():
        wanted = "a whole number" if whole else "a number"
        bounds = "" if classes is None else f" from 0 to {classes - 1}"
        raise InputError(f"{where}: column {names[int(np.argmin(fits))]!r}: expected {wanted}{bounds}")
    return values.astype(spec.dtype).tobytes()


def _or_nan(parse: Callable[[str], float], text: str) -> float:
    try:
        return float(parse(text))
    except (ValueError, OverflowError):
        return float("nan")
