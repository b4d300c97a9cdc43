"""The scale of each block of 32 values, in four bits: a power of 2**(1/8), a step of 9 %.

A chunk's *exponent* e says how large its largest value is; a block's level k, from 1 to 15, makes its scale
2**((e + k − 15)/8), and 0 is a block of nothing but zeros. They stand behind the values' codes: an encoder knows them
all at the end, and a decoder reads them all at once.
"""

from __future__ import annotations

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
_LARGEST = 480  # exponent: values are below 2**60, so that neither squares nor sums overflow; below 2**-60 they are 0
_NOTHING = np.float32(2.0**-100)  # less is zero, also where a processor takes denormal numbers for it
_MAGNITUDES = np.float32(2.0**-60), np.float32(2.0**60)


def blocks_of(elements: int) -> int:
    """Number of blocks of so many elements: a chunk is a whole number of blocks, but for the last."""
    return -(-elements // BLOCK)


def levels_size(elements: int) -> int:
    """Bytes of the exponents and levels: an int16 each chunk, four bits each block."""
    return 2 * -(-elements // CHUNK) + -(-blocks_of(elements) // 2)


def scales_of(exponent: int) -> FloatArray:
    """The scales of a chunk's 16 levels, float32 [16]."""
    eighths = np.arange(exponent - _TOP, exponent + 1)
    scales = np.ldexp(_EIGHTHS[eighths % 8], eighths // 8)
    scales[0] = 0
    return scales


class LevelWriter:
    """Chooses levels, chunk by chunk, and remembers them."""

    def __init__(self) -> None:
        self._exponents: list[int] = []
        self._levels: list[Bytes] = []

    def choose(self, magnitudes: FloatArray) -> FloatArray:
        """One over the scale of each of the next chunk's blocks, the smallest that holds it; 0 for nothing but zeros.

        Args:
            magnitudes: the largest of each block, float32 [blocks], ≥ 0.

        Raises:
            UpdateError: a magnitude is not finite, or 2**60 and above (reason ``non_finite``).
        """
        largest = magnitudes.max()
        if not largest < _MAGNITUDES[1]:
            raise UpdateError("non_finite", "update: holds values that are not finite, or too large to be encoded")
        if largest < _MAGNITUDES[0]:
            self._exponents.append(0)
            self._levels.append(np.zeros(magnitudes.size, np.uint8))
            return np.zeros_like(magnitudes)
        digits, power = np.frexp(largest)
        exponent = 8 * (int(power) - 1) + int(np.searchsorted(_EIGHTHS, 2 * digits))
        scales = scales_of(exponent)
        levels = np.searchsorted(scales, magnitudes).astype(np.uint8)
        levels[magnitudes < _NOTHING] = 0
        self._exponents.append(exponent)
        self._levels.append(levels)
        return np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)[levels]

    def written(self) -> bytes:
        """The exponents, then the levels of all blocks."""
        if not self._exponents:
            return b""
        return np.array(self._exponents, "<i2").tobytes() + pack_nibbles(np.concatenate(self._levels)).tobytes()


def read_levels(payload: memoryview, elements: int) -> tuple[list[int], Bytes]:
    """The exponents, [chunks], and the levels, uint8 [blocks], from the end of a payload."""
    end = payload[len(payload) - levels_size(elements) :]
    count = 2 * -(-elements // CHUNK)
    exponents = np.frombuffer(end[:count], "<i2").tolist()
    return exponents, unpack_nibbles(np.frombuffer(end[count:], np.uint8), blocks_of(elements))


def are_finite(payload: memoryview, elements: int) -> bool:
    """Whether the exponents at the end of a payload are such as an encoder writes."""
    return all(abs(exponent) <= _LARGEST for exponent in read_levels(payload, elements)[0])


def pack_nibbles(values: Bytes) -> Bytes:
    """Two values below 16 a byte: the first half of them in the low bits, the second half in the high ones."""
    half = -(-values.size // 2)
    packed = values[:half].copy()
    packed[: values.size - half] |= values[half:] << np.uint8(4)
    return packed


def unpack_nibbles(packed: Bytes, count: int) -> Bytes:
    """What `pack_nibbles` packed."""
    return np.concatenate([packed & 15, packed[: count - packed.size] >> 4])
