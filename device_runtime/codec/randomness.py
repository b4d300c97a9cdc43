"""The random numbers of a codec: words of Philox 4x64-10, which are the same on every platform and in every language.

numpy's `Philox` with a key gives the words of counter 1, 2, … in order, four at a time.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from device_runtime.tensors import FloatArray

Words = npt.NDArray[np.uint64]

# Second half of the key. Epochs use [seed, 0], [seed, 1], …; dropout [seed, 2**63 - 1].
ROUNDING = 2**63
ROTATION = 2**63 + 1
OVERLAP = 2**63 + 2


class Draws:
    """A stream of random numbers, drawn one after the other.

    Args:
        seed: first half of the key, 0 ≤ seed < 2**64.
        stream: second half: `ROUNDING`, `ROTATION` or `OVERLAP`.
    """

    def __init__(self, seed: int, stream: int) -> None:
        self._words = np.random.Philox(key=np.array([seed, stream], np.uint64))

    def words(self, count: int) -> Words:
        """The next words, uint64 [count]."""
        words: Words = self._words.random_raw(count)
        return words

    def uniform(self, count: int) -> FloatArray:
        """Numbers from 0 to below 1 with 24 bits, float32 [count]: the top 24 bits of a word each."""
        return (self.words(count) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)

    def coarse(self, count: int) -> FloatArray:
        """Numbers from 0 to below 1 with 16 bits, float32 [count]: the quarters of a word, the lowest first."""
        words = self.words(-(-count // 4)).astype("<u8", copy=False)
        return words.view("<u2")[:count].astype(np.float32) * np.float32(2**-16)

    def signs(self, count: int) -> FloatArray:
        """+1 or −1, float32 [count]: −1 where the bit of a word is set, the lowest bit first."""
        words = self.words(-(-count // 64)).astype("<u8", copy=False)
        bits = np.unpackbits(words.view(np.uint8), count=count, bitorder="little")
        return np.float32(1) - np.float32(2) * bits

    def direction(self, dimensions: int) -> tuple[float, ...]:
        """A unit vector, every direction as likely as every other: a point of the cube that lies in the ball.

        Coordinates are 2·(top 53 bits of a word)/2**53 − 1; points outside of the ball, or within 2**-10 of its
        centre, are drawn again.
        """
        while True:
            point = [2.0 * (int(word) >> 11) / 2**53 - 1.0 for word in self.words(dimensions)]
            squared = 0.0  # not `sum`, which rounds in another way from Python 3.12 on
            for x in point:
                squared += x * x
            if 2.0**-20 <= squared < 1.0:
                length = math.sqrt(squared)  # exact to the bit everywhere; a power need not be
                return tuple(x / length for x in point)
