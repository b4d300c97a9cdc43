"""The scale of each block of 32 values, in four bits: a power of 2**(1/8), a step of 9 %.

A chunk's *exponent* e says how large its largest value is; a block's level k, from 1 to 15, makes its scale
2**((e + k − 15)/8), and 0 is a block of nothing but zeros. They stand behind the values' codes: an encoder knows them
all at the end, and a decoder reads them all at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from device_runtime.codec.rotation import CHUNK
from device_runtime.errors import UpdateError
from device_runtime.tensors import FloatArray

Bytes = npt.NDArray[np.uint8]

BLOCK = 32
# 2**(j/8) to float32's precision; a power of two more or less changes no digit.
_EIGHTHS = np.array([1.0, 1.0905077, 1.1892071, 1.2968396, 1.4142135, 1.5422108, 1.6817929, 1.8340081], np.float32)
_TOP = 15
# Values are below 2**60, so that no sum of many overflows, and a chunk below 2**-60 is zeros.
_POWERS = 60
_LARGEST_EXPONENT = 8 * (_POWERS + 2)  # a group's length may be twice its largest value


def blocks_of(elements: int) -> int:
    """Number of blocks of so many elements: a chunk is a whole number of blocks, but for the last."""
    return -(-elements // BLOCK)


def levels_size(elements: int) -> int:
    """Bytes of the exponents and levels: an int16 each chunk, four bits each block."""
    return 2 * -(-elements // CHUNK) + -(-blocks_of(elements) // 2)


def scales_of(exponent: int | Sequence[int]) -> FloatArray:
    """The scales of a chunk's 16 levels, float32 [16]; of several chunks, [chunks, 16]."""
    eighths = np.add.outer(exponent, np.arange(-_TOP, 1))
    scales = np.ldexp(_EIGHTHS[eighths % 8], eighths // 8)
    scales[..., 0] = 0
    return scales


class LevelWriter:
    """Chooses levels, chunk by chunk, and remembers them."""

    def __init__(self) -> None:
        self._exponents: list[int] = []
        self._levels: list[Bytes] = []

    def choose(self, magnitudes: FloatArray, power: int) -> FloatArray:
        """One over the scale of each of the next chunk's blocks, the smallest that holds it; 0 for nothing but zeros.

        Args:
            magnitudes: the largest of each block, float32 [blocks], ≥ 0, of a chunk that `normalise` has divided.
            power: what `normalise` gave.
        """
        digits, own = np.frexp(magnitudes.max())
        exponent = 8 * (int(own) - 1) + int(np.searchsorted(_EIGHTHS, 2 * digits)) if digits else 0
        scales = scales_of(exponent)
        levels = np.searchsorted(scales, magnitudes).astype(np.uint8)
        self._exponents.append(exponent + 8 * power)
        self._levels.append(levels)
        return np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)[levels]

    def written(self) -> bytes:
        """The exponents, then the levels of all blocks."""
        if not self._exponents:
            return b""
        return np.array(self._exponents, "<i2").tobytes() + pack_nibbles(np.concatenate(self._levels)).tobytes()


def read_levels(payload: memoryview, elements: int) -> tuple[list[int], Bytes]:
    """The exponents, [chunks], and the levels, uint8 [blocks], from the end of a payload."""
    blocks = blocks_of(elements)
    packed = np.frombuffer(payload[len(payload) - -(-blocks // 2) :], np.uint8)
    return _read_exponents(payload, elements), unpack_nibbles(packed, blocks)


def block_steps(payload: memoryview, elements: int, factor: float, steps: np.float32) -> FloatArray:
    """The scale of every block times `factor`, over `steps`; float32 [blocks], from the end of a payload."""
    exponents, levels = read_levels(payload, elements)
    table = scales_of(exponents)
    table *= np.float32(factor)
    table /= steps
    places = np.zeros((table.shape[0], CHUNK // BLOCK), np.intp)  # numpy's own type of places: no other is as fast
    places.reshape(-1)[: levels.size] = levels
    places += np.arange(0, table.size, table.shape[1])[:, None]
    found: FloatArray = table.reshape(-1)[places.reshape(-1)[: levels.size]]
    return found


def are_finite(payload: memoryview, elements: int) -> bool:
    """Whether the exponents at the end of a payload are such as an encoder writes."""
    return all(abs(exponent) <= _LARGEST_EXPONENT for exponent in _read_exponents(payload, elements))


def _read_exponents(payload: memoryview, elements: int) -> list[int]:
    count, start = -(-elements // CHUNK), len(payload) - levels_size(elements)
    exponents: list[int] = np.frombuffer(payload[start : start + 2 * count], "<i2").tolist()
    return exponents


def normalise(values: FloatArray) -> int:
    """Divide by a power of two, 2**p, in place, so that the largest magnitude comes to between ½ and 1; p.

    Values below 2**-100 of it become zeros: some processors take the smallest numbers of float32 for zeros, and then
    all do.

    Raises:
        UpdateError: a value is not finite, or 2**60 and above (reason ``non_finite``).
    """
    largest = max(values.max(), -values.min())
    if not largest < 2.0**_POWERS:
        raise UpdateError("non_finite", "update: holds values that are not finite, or too large to be encoded")
    power = int(np.frexp(largest)[1])
    if largest < 2.0**-_POWERS:
        values[:] = 0
        return 0
    np.ldexp(values, -power, out=values)
    values[np.abs(values) < np.float32(2.0**-100)] = 0
    return power


def pack_nibbles(values: Bytes) -> Bytes:
    """Two values below 16 a byte: the first half of them in the low bits, the second half in the high ones."""
    half = -(-values.size // 2)
    packed = values[:half].copy()
    packed[: values.size - half] |= values[half:] << np.uint8(4)
    return packed


def unpack_nibbles(packed: Bytes, count: int) -> Bytes:
    """What `pack_nibbles` packed."""
    return np.concatenate([packed & 15, packed[: count - packed.size] >> 4])
