"""Pickles that hold dictionaries, lists, text, numbers and arrays of bytes, read without running what is in them.

A pickle is a program: it names functions, and calls them. Here it can name four, which are not NumPy's but stand-ins
of this module: they only note what they are given, and an array is made of it when it has been checked. Python's own
unpickler is the one written in Python, because the other sets aside as much memory as a hostile file asks for.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tff_sim.datasets.files import read_file
from tff_sim.errors import DatasetError

_MOST_DIMENSIONS = 4


class _RefusedError(Exception):
    """The pickle asks for something else than data."""


class _Dtype:
    """Stands for ``numpy.dtype``; bytes are all that it knows."""

    __slots__ = ()

    def __call__(self, code: object = None, *_: object) -> _Dtype:
        if code not in ("u1", b"u1"):
            raise _RefusedError(f"arrays of {code[:20]!r}" if isinstance(code, str | bytes) else "arrays of no type")
        return self

    def __setstate__(self, state: object) -> None:
        pass  # byte order and alignment: none of it matters for single bytes


class _Array:
    """Stands for an array that is being read; its state comes last."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def value(self) -> npt.NDArray[np.uint8]:
        """The array that the state describes, if it describes one."""
        match self.state:
            case (int(), tuple(shape), _Dtype(), bool() | int() as fortran, bytes(data)) if (
                all(type(size) is int and size >= 0 for size in shape)
                and len(shape) <= _MOST_DIMENSIONS
                and math.prod(shape) == len(data)
            ):
                return np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")
        raise _RefusedError("an array that does not fit its data")


class _Reconstruct:
    """Stands for NumPy's function that begins every array in a pickle."""

    __slots__ = ()

    def __call__(self, *_: object) -> _Array:
        return _Array()


class _Encode:
    """Stands for ``_codecs.encode``, by which Python 3 writes bytes in a form that Python 2 reads."""

    __slots__ = ()

    def __call__(self, text: object, encoding: object = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1", "latin-1", b"latin-1"):
            raise _RefusedError("text in another encoding than Latin-1")
        return text.encode("latin-1")


@dataclass(frozen=True, slots=True)
class _Type:
    """Stands for ``numpy.ndarray``, which a pickle names and does not call."""


_ALLOWED: dict[tuple[str, str], object] = {
    ("numpy", "dtype"): _Dtype(),
    ("numpy", "ndarray"): _Type(),
    ("_codecs", "encode"): _Encode(),
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct(),  # as NumPy 2 calls it
}


# Byte arrays come with a length that is believed; sets hash whatever is put in.
_LEFT_OUT = (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET)


class _Unpickler(pickle._Unpickler):
    """Python's, without the instructions that such data never has and that cost more than the file's own size."""

    # Of the class above, and not in its type stubs.
    stack: list[Any]
    append: Callable[[object], None]
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module, name))
        if found is None:
            raise _RefusedError(ascii(f"{module}.{name}"[:60])[1:-1])
        return found

    def _refuse(self) -> None:
        raise _RefusedError("a byte array or a set")

    def _set_items(self) -> None:
        self._put(self.pop_mark())

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def _dictionary(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._put(items)

    def _put(self, items: list[Any]) -> None:
        # A tuple of tuples of tuples, each twice the one before, would take for ever to hash.
        if not isinstance(self.stack[-1], dict) or not all(isinstance(key, str | bytes) for key in items[::2]):
            raise _RefusedError("a dictionary whose keys are not text")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        **dict.fromkeys((code[0] for code in _LEFT_OUT), _refuse),
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _dictionary,
    }


def read_pickle(path: Path, expected: str) -> dict[bytes, Any]:
    """The dictionary in a pickle; text is in bytes, as Python 2 wrote it, and arrays are of unsigned bytes.

    Args:
        path: the file.
        expected: what it should be, for the message.

    Raises:
        DatasetError: it is missing, damaged or no pickle of a dictionary, or it asks for anything but data, and
            then nothing of what it asks for was done.
    """
    data = read_file(path, expected)
    try:
        found = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(found, dict):
            raise _RefusedError(f"a {type(found).__name__} instead of a dictionary")
        return {
            key.encode() if isinstance(key, str) else key: value.value() if isinstance(value, _Array) else value
            for key, value in found.items()
        }
    except _RefusedError as refused:
        raise DatasetError(f"{path}: refused, nothing of it was run: it holds {refused}; expected {expected}") from None
    except Exception:  # a damaged pickle ends in any of a dozen kinds
        raise DatasetError(f"{path}: truncated, damaged or not a pickle; expected {expected}") from None
