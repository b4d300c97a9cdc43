"""`q8` and `q4`: every value rounded to one of 2**b levels, shifted at random by an amount that both sides know.

Subtractive dither: with a step Δ and a shift u, uniform in [0, 1), the value x is sent as q = ⌊x/Δ + u − ½⌋ and read
as (q + 1 − u)·Δ. The error is uniform in ±Δ/2 whatever x is: nothing on average, and Δ²/12 squared, half of what
rounding at random costs (Roberts 1962; Schuchman 1964). One u serves a block of 32 values: what has to be independent
is the errors of different clients.
"""

from __future__ import annotations

import numpy as np

from device_runtime.codec.levels import (
    BLOCK,
    LevelWriter,
    are_finite,
    block_steps,
    blocks_of,
    levels_size,
    normalise,
    pack_nibbles,
    unpack_nibbles,
)
from device_runtime.codec.randomness import Draws
from device_runtime.codec.rotation import CHUNK
from device_runtime.codec.total import Total
from device_runtime.tensors import FloatArray

_ROWS = 4
_NIBBLES = np.array([[0x0F], [0xF0]], np.uint8)


class DitheredLevels:
    """The values of one update.

    Block i of n blocks holds the values i, i + n, i + 2n, … of its chunk: a chunk is a matrix whose columns are blocks.

    Args:
        bits: 8 or 4.
        draws: the update's random numbers: one a block.
    """

    def __init__(self, bits: int, draws: Draws) -> None:
        self._bits = bits
        self._lowest = np.float32(-(2 ** (bits - 1)))
        # 2**bits levels and a shift of up to one: values from −(2**bits − 1)/2 to +(2**bits − 1)/2 steps have a level.
        self._half = np.float32((2**bits - 1) / 2)
        self._draws = draws
        self._levels = LevelWriter()

    @staticmethod
    def size(bits: int, elements: int) -> int:
        """Bytes of so many values."""
        whole, rest = divmod(elements, CHUNK)
        return whole * (CHUNK * bits // 8) + -(-rest * bits // 8) + levels_size(elements)

    def encode(self, values: FloatArray) -> bytes:
        """The codes of the next chunk, a flat float32 array; it is overwritten."""
        power = normalise(values)
        columns = blocks_of(values.size)
        matrix = _columns(values, columns)
        inverse = self._levels.choose(np.maximum(matrix.max(axis=0), -matrix.min(axis=0)), power)
        matrix *= inverse * self._half
        matrix += self._draws.coarse(columns) - np.float32(0.5)
        np.floor(matrix, out=matrix)
        np.clip(matrix, self._lowest, -1 - self._lowest, out=matrix)  # rounding may carry the largest over the edge
        flat = matrix.reshape(-1)[: values.size]
        if self._bits == 8:
            return flat.astype(np.int8).tobytes()
        return pack_nibbles((flat - self._lowest).astype(np.uint8)).tobytes()

    def finish(self) -> bytes:
        """What stands behind the codes."""
        return self._levels.written()

    def add(self, payload: memoryview, total: Total, factor: float) -> None:
        """Add `factor` times the values to the total."""
        size = total.values.size
        steps = block_steps(payload, size, factor, self._half)
        shift = np.float32(1) - self._draws.coarse(steps.size)
        if self._bits == 4:  # its codes start at 0
            shift += self._lowest
        shift *= steps
        total.offsets += shift
        # A table of codes is multiplied by halves, since the high four bits of a byte are taken for 16 times what they
        # say; and by four rows at a time, since numpy's way from row to row costs as much as a row.
        halves = np.stack([steps, steps * np.float32(1 / 16) if self._bits == 4 else steps])
        most = blocks_of(min(CHUNK, size))
        buffer, tiles = np.empty(BLOCK * most, np.float32), np.empty((2, _ROWS * most), np.float32)
        for place in range(0, size, CHUNK):
            part = total.values[place : place + CHUNK]
            columns = blocks_of(part.size)
            values, rows = buffer[: BLOCK * columns], tiles[:, : _ROWS * columns]
            rows.reshape(2, _ROWS, columns)[:] = halves[:, None, place // BLOCK : place // BLOCK + columns]
            if self._bits == 8:
                values[: part.size] = np.frombuffer(payload, np.int8, part.size, place)
            else:
                packed = np.frombuffer(payload, np.uint8, -(-part.size // 2), place // 2)
                if part.size == values.size:
                    values.reshape(2, -1)[:] = packed & _NIBBLES
                else:  # the codes of high bits begin within a row
                    values[: part.size] = unpack_nibbles(packed, part.size)
                    rows[1] = rows[0]
            values[part.size :] = 0
            table = values.reshape(2, -1, rows.shape[1])
            table *= rows[:, None]
            part += values[: part.size]

    @staticmethod
    def finite(payload: memoryview, elements: int) -> bool:
        """Whether all values are finite."""
        return are_finite(payload, elements)


def _columns(values: FloatArray, columns: int) -> FloatArray:
    if values.size == BLOCK * columns:
        return values.reshape(BLOCK, columns)
    padded = np.zeros(BLOCK * columns, np.float32)
    padded[: values.size] = values
    return padded.reshape(BLOCK, columns)
