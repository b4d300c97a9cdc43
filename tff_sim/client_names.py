"""The names of a population's clients, without a Python object for each: a population may have 200,000."""

from __future__ import annotations

import string
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

NameArray = npt.NDArray[np.bytes_]

# What a name on the wire consists of (`device_runtime.messages`), and the zeros that fill an array's rows.
_ALLOWED = np.zeros(256, np.bool_)
_ALLOWED[list(b"\0-_." + string.ascii_letters.encode() + string.digits.encode())] = True


class ClientNames(Sequence[str]):
    """Names by number, each made when it is asked for, and numbers by name."""

    @abstractmethod
    def name(self, number: int) -> str:
        """The name of a client, 0 ≤ number < K."""

    @abstractmethod
    def find(self, name: str) -> int | None:
        """The number of the client with this name; None where nobody has it."""

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self.name(number) for number in range(*index.indices(len(self)))]
        number = int(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"client {number} of {len(self)}")
        return self.name(number % len(self))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.find(name) is not None

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        found = self.find(value) if isinstance(value, str) else None
        if found is None or found not in range(*slice(start, stop).indices(len(self))):
            raise ValueError(f"no client {value!r}")
        return found

    def array(self) -> NameArray:
        """All names in UTF-8, bytes [K]."""
        return np.array([name.encode() for name in self], np.bytes_)


class NumberedNames(ClientNames):
    """``client-000``, ``client-001``, …: as many digits for each, three at least."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._width = max(3, len(str(count - 1)))

    def __len__(self) -> int:
        return self._count

    def name(self, number: int) -> str:
        return f"client-{number:0{self._width}d}"

    def find(self, name: str) -> int | None:
        digits = name.removeprefix("client-")
        if not (digits.isascii() and digits.isdigit()):
            return None
        number = int(digits)
        return number if number < self._count and self.name(number) == name else None


class ListedNames(ClientNames):
    """Any different names, one after the other in an array.

    Args:
        names: in UTF-8, bytes [K].
        order: the numbers that sort them, int [K]; found where it is not given.
    """

    def __init__(self, names: NameArray, order: npt.NDArray[Any] | None = None) -> None:
        self._names = names
        self.order: npt.NDArray[Any] = np.argsort(names, kind="stable") if order is None else order

    @classmethod
    def of(cls, names: Iterable[str]) -> ListedNames:
        return cls(np.array([name.encode() for name in names], np.bytes_))

    def __len__(self) -> int:
        return len(self._names)

    def name(self, number: int) -> str:
        return bytes(self._names[number]).decode()

    def find(self, name: str) -> int | None:
        # By halves, and not by `numpy.searchsorted`, which would bring a mapped file into memory.
        wanted, low, high = name.encode(), 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self._names[self.order[middle]] < wanted:
                low = middle + 1
            else:
                high = middle
        if low == len(self) or self._names[self.order[low]] != wanted:
            return None
        return int(self.order[low])

    def array(self) -> NameArray:
        return self._names

    def fault(self) -> str | None:
        """What is wrong with them as names of devices; None where nothing is."""
        letters = np.ascontiguousarray(self._names).view(np.uint8).reshape(len(self), -1)
        if not _ALLOWED[letters].all() or not letters[:, 0].all():
            return "a client's name is empty, or has other characters than letters, digits, '-', '_' and '.'"
        ordered = self._names[self.order]
        same = np.flatnonzero(ordered[1:] == ordered[:-1])
        return f"two clients are named {bytes(ordered[same[0]]).decode()!r}" if len(same) else None
