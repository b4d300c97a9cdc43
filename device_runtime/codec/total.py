"""Sums of many updates' values, in float32 while they are few."""

from __future__ import annotations

import numpy as np

from device_runtime.codec.levels import BLOCK, blocks_of
from device_runtime.codec.rotation import CHUNK
from device_runtime.tensors import FloatArray


class Total:
    """A running sum of vectors.

    Attributes:
        values: float32 [values]; incomplete until `settle`.
        offsets: what is to be added to every value of a block whose values stand in a column of their chunk
            (`device_runtime.codec.scalar`), float32 [blocks]: adding it once for many updates spares each a pass.
    """

    def __init__(self, size: int) -> None:
        self.values: FloatArray = np.zeros(size, np.float32)
        self.offsets: FloatArray = np.zeros(blocks_of(size), np.float32)

    def settle(self) -> FloatArray:
        """The sum, float32 [values]: the offsets are in the values afterwards."""
        for place in range(0, self.values.size, CHUNK):
            part = self.values[place : place + CHUNK]
            columns = blocks_of(part.size)
            first = place // BLOCK
            part += np.tile(self.offsets[first : first + columns], BLOCK)[: part.size]
        self.offsets[:] = 0
        return self.values

    def clear(self) -> None:
        """Start anew from zero."""
        self.values[:] = 0
        self.offsets[:] = 0
