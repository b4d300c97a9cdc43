"""`f32`, the identity, and `f16`, half precision with rounding at random."""

from __future__ import annotations

import numpy as np

from device_runtime.codec.levels import normalise
from device_runtime.codec.randomness import Draws
from device_runtime.codec.rotation import CHUNK
from device_runtime.codec.total import Total
from device_runtime.errors import UpdateError
from device_runtime.tensors import FloatArray


class Single:
    """The values of one update as little-endian float32."""

    @staticmethod
    def size(elements: int) -> int:
        """Bytes of so many values."""
        return 4 * elements

    def encode(self, values: FloatArray) -> bytes:
        """The bytes of the next chunk."""
        if not np.isfinite(values).all():
            raise UpdateError("non_finite", "update: holds values that are not finite")
        return values.astype("<f4", copy=False).tobytes()

    def finish(self) -> bytes:
        """Nothing stands behind the values."""
        return b""

    def add(self, payload: memoryview, total: Total, factor: float) -> None:
        """Add `factor` times the values to the total."""
        for place in range(0, total.values.size, CHUNK):
            part = total.values[place : place + CHUNK]
            part += np.frombuffer(payload, "<f4", part.size, 4 * place) * np.float32(factor)

    @staticmethod
    def finite(payload: memoryview, elements: int) -> bool:
        """Whether all values are finite."""
        return bool(np.isfinite(np.frombuffer(payload, "<f4")).all())


class Half:
    """The values of one update as float16, over powers of two that bring the largest of each chunk near float16's own.

    A value between two neighbours of float16 becomes one of them at random, so that its expected value is exact.
    """

    _LARGEST = 15  # float16 holds what is below 2**16; rounded up, a value below 2**15 stays there
    _LARGEST_UNIT = 2.0**45  # of values just below 2**60
    _SMALLEST = -14  # exponent below which float16's neighbours come no closer
    _DIGITS = 10

    def __init__(self, draws: Draws) -> None:
        self._draws = draws
        self._units: list[float] = []

    @staticmethod
    def size(elements: int) -> int:
        """Bytes of so many values: float16, then each chunk's power of two as float32."""
        return 2 * elements + 4 * -(-elements // CHUNK)

    def encode(self, values: FloatArray) -> bytes:
        """The bytes of the next chunk, a flat float32 array; it is overwritten."""
        power = normalise(values)
        np.ldexp(values, self._LARGEST, out=values)
        self._units.append(2.0 ** (power - self._LARGEST))
        # Distance of float16's neighbours around each value, as a power of two.
        spacing = np.maximum(np.frexp(values)[1] - 1, self._SMALLEST) - self._DIGITS
        steps = np.ldexp(values, -spacing)
        steps += self._draws.coarse(values.size)
        np.floor(steps, out=steps)
        return np.ldexp(steps, spacing).astype("<f2").tobytes()

    def finish(self) -> bytes:
        """The powers of two."""
        return np.array(self._units, "<f4").tobytes()

    def add(self, payload: memoryview, total: Total, factor: float) -> None:
        """Add `factor` times the values to the total."""
        units = np.frombuffer(payload, "<f4", offset=2 * total.values.size)
        for number, unit in enumerate(units):
            part = total.values[number * CHUNK : (number + 1) * CHUNK]
            values = np.frombuffer(payload, "<f2", part.size, 2 * number * CHUNK).astype(np.float32)
            values *= np.float32(unit * factor)
            part += values

    @staticmethod
    def finite(payload: memoryview, elements: int) -> bool:
        """Whether all values are finite."""
        units = np.frombuffer(payload, "<f4", offset=2 * elements)
        # Beyond the largest that an encoder writes, the products need not be finite, nor their sum over many updates.
        values = np.frombuffer(payload, "<f2", elements)
        return bool((np.abs(units) <= Half._LARGEST_UNIT).all() and np.isfinite(values).all())
