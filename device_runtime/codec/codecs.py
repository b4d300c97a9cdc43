"""The codecs by name and number, and what is the same for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from device_runtime.codec.codebook import TurnedPoints
from device_runtime.codec.floats import Half, Single
from device_runtime.codec.randomness import ROUNDING, Draws
from device_runtime.codec.scalar import DitheredLevels
from device_runtime.codec.total import Total
from device_runtime.errors import InputError
from device_runtime.tensors import FloatArray, TensorSpec


class Coder(Protocol):
    """The values of one update."""

    def encode(self, values: FloatArray) -> bytes:
        """The bytes of the next chunk, a flat float32 array that may be overwritten.

        Raises:
            UpdateError: a value is not finite (reason ``non_finite``).
        """
        ...

    def finish(self) -> bytes:
        """What follows the last chunk."""
        ...

    def add(self, payload: memoryview, total: Total, factor: float) -> None:
        """Add `factor` times the values to the total; any bytes of the right length give some values."""
        ...


@dataclass(frozen=True)
class Codec:
    """How the values of an update become bytes.

    Attributes:
        name, number: under which commands and updates know it.
        rotated: whether the vector is rotated before.
        size: bytes of so many values.
        finite: whether a payload of so many values has finite ones only.
    """

    name: str
    number: int
    rotated: bool
    size: Callable[[int], int]
    finite: Callable[[memoryview, int], bool]
    _coder: Callable[[Draws], Coder]

    def coder(self, seed: int) -> Coder:
        """The coder of the update with this seed."""
        return self._coder(Draws(seed, ROUNDING))


_ALL = (
    Codec("f32", 0, False, Single.size, Single.finite, lambda draws: Single()),
    Codec("f16", 1, False, Half.size, Half.finite, Half),
    Codec("q8", 2, True, partial(DitheredLevels.size, 8), DitheredLevels.finite, partial(DitheredLevels, 8)),
    Codec("q4", 3, True, partial(DitheredLevels.size, 4), DitheredLevels.finite, partial(DitheredLevels, 4)),
    Codec("q2", 4, True, partial(TurnedPoints.size, 2), TurnedPoints.finite, partial(TurnedPoints, 2)),
    Codec("q1", 5, True, partial(TurnedPoints.size, 4), TurnedPoints.finite, partial(TurnedPoints, 4)),
)
BY_NUMBER = {codec.number: codec for codec in _ALL}
_BY_NAME = {codec.name: codec for codec in _ALL}

CODECS = tuple(_BY_NAME)


def codec_named(name: str) -> Codec:
    """The codec with this name; `InputError` where there is none."""
    if name not in _BY_NAME:
        raise InputError(f"unknown codec {name!r}; known codecs: {', '.join(CODECS)}")
    return _BY_NAME[name]


def values_of(specs: Sequence[TensorSpec]) -> int:
    """Number of values of a model with these tensors."""
    return sum(spec.size for spec in specs)
