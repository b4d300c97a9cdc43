"""`q2` and `q1`: two or four values together become one of 16 points, turned at random by a rotation both sides know.

A *group* of D values (2 for `q2`, 4 for `q1`), over the scale of its block, is a vector v with |v| ≤ 1. The update's
random rotation O turns the points c_j of the codebook. The nearest point to v itself is too short on average: over all
rotations its mean lies in v's direction, but with another length, g(|v|). So what is looked for is the nearest point to
μ·v/|v|, with the length μ for which g(μ) = |v|: then the mean over rotations is v, exactly. Every update draws its own
rotation, so the errors of many clients average out; and the points being few, a decoder reads them from a table.

EDEN (Vargaftik et al. 2022) corrects a length too, once for a whole vector that every client rotates for itself, which
the server then has to undo for every client. Here the random rotation has as many dimensions as a group.

The points were found by Lloyd's iteration on rotated normal values, μ being found anew in every step;
`docs/codec.md` says how, and a test checks the tables by integration.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from device_runtime.codec.levels import (
    BLOCK,
    Bytes,
    LevelWriter,
    are_finite,
    blocks_of,
    levels_size,
    normalise,
    read_levels,
    scales_of,
)
from device_runtime.codec.randomness import Draws
from device_runtime.codec.rotation import CHUNK
from device_runtime.codec.tables import KNOTS, LENGTHS, POINTS
from device_runtime.codec.total import Total
from device_runtime.tensors import FloatArray

_Matrix = list[list[float]]


class TurnedPoints:
    """Chunks of one update, one after the other.

    A block is 32 neighbours of its chunk, a group D neighbours of its block.

    Args:
        dimensions: D, 2 or 4.
        draws: the update's random numbers: first the rotation; when encoding, then one a group.
    """

    def __init__(self, dimensions: int, draws: Draws) -> None:
        self._dimensions = dimensions
        self._draws = draws
        self._levels = LevelWriter()
        points = POINTS[dimensions]
        self._halves = [np.float32(_dot(point, point) / 2) for point in points]
        turned = _turned(points, rotation(dimensions, draws))
        self._points: FloatArray = np.array(turned, np.float32)
        # A byte is two points side by side, the first in its low bits.
        self._pairs = np.concatenate([np.tile(self._points, (16, 1)), np.repeat(self._points, 16, axis=0)], axis=1)

    @staticmethod
    def size(dimensions: int, elements: int) -> int:
        """Bytes of so many values: four bits a group, then the levels."""
        return -(-elements // (2 * dimensions)) + levels_size(elements)

    def encode(self, values: FloatArray) -> bytes:
        """The codes of the next chunk, a flat float32 array; it is overwritten."""
        power = normalise(values)
        size, width = values.size, self._dimensions
        blocks, groups = blocks_of(size), -(-size // width)
        padded = np.zeros((blocks * BLOCK // width, width), np.float32)
        padded.reshape(-1)[:size] = values
        coordinates = padded.T.copy()
        lengths = coordinates[0] * coordinates[0]
        for coordinate in coordinates[1:]:
            lengths += coordinate * coordinate
        np.sqrt(lengths, out=lengths)
        inverse = self._levels.choose(lengths.reshape(blocks, -1).max(axis=1), power)
        knots = (lengths.reshape(blocks, -1) * (inverse * np.float32(KNOTS))[:, None]).reshape(-1)[:groups]
        knots += self._draws.coarse(groups)
        np.minimum(knots, KNOTS, out=knots)  # rounding may carry the largest over the edge
        lengths = lengths[:groups]
        stretch = LENGTHS[width][knots.astype(np.uint8)]
        np.divide(stretch, lengths, out=stretch, where=lengths > 0)
        codes = np.zeros(2 * -(-groups // 2), np.uint8)
        codes[:groups] = self._nearest(coordinates[:, :groups] * stretch)
        return (codes[0::2] | codes[1::2] << 4).tobytes()

    def finish(self) -> bytes:
        """What stands behind the codes."""
        return self._levels.written()

    def add(self, payload: memoryview, total: Total, factor: float) -> None:
        """Add `factor` times the values to the total."""
        pair = 2 * self._dimensions
        exponents, levels = read_levels(payload, total.values.size)
        tables = {exponent: self._table(exponent, factor) for exponent in set(exponents)}  # chunks are often alike
        buffer = np.empty(CHUNK // pair, f"V{4 * pair}")
        for number, exponent in enumerate(exponents):
            place = number * CHUNK
            part = total.values[place : place + CHUNK]
            codes = np.frombuffer(payload, np.uint8, -(-part.size // pair), place // pair)
            rows = levels[place // BLOCK : (place + CHUNK) // BLOCK].astype(np.uint16) << 8
            places = np.repeat(rows, BLOCK // pair)[: codes.size]
            places |= codes
            if pair == 4:  # the faster way is another one for each size of items
                found = tables[exponent][places]
            else:
                found = tables[exponent].take(places, out=buffer[: codes.size], mode="clip")
            part += found.view(np.float32)[: part.size]

    @staticmethod
    def finite(payload: memoryview, elements: int) -> bool:
        """Whether all values are finite."""
        return are_finite(payload, elements)

    def _table(self, exponent: int, factor: float) -> npt.NDArray[np.void]:
        """The values of each byte at each level: items of 2·D float32, which are moved as one, many times faster."""
        rows = np.multiply.outer(scales_of(exponent) * np.float32(factor), self._pairs)
        return rows.reshape(-1).view(f"V{4 * rows.shape[-1]}")

    def _nearest(self, coordinates: FloatArray) -> Bytes:
        """The number of the nearest point to each column, uint8; of two that are as near, the first.

        Products and sums in a fixed order: the same choice on every machine.
        """
        count = coordinates.shape[1]
        closest = np.zeros(count, np.uint8)
        best = np.full(count, -np.inf, np.float32)
        score, term = np.empty_like(best), np.empty_like(best)
        closer = np.empty(count, np.bool_)
        candidate = closer.view(np.uint8)
        for number, (point, half) in enumerate(zip(self._points, self._halves, strict=True)):
            np.multiply(coordinates[0], point[0], out=score)
            for coordinate, component in zip(coordinates[1:], point[1:], strict=True):
                score += np.multiply(coordinate, component, out=term)
            score -= half
            np.greater(score, best, out=closer)
            np.maximum(best, score, out=best)
            # The latest that was closer has the largest number.
            candidate *= np.uint8(number)
            np.maximum(closest, candidate, out=closest)
        return closest


def rotation(dimensions: int, draws: Draws) -> _Matrix:
    """A random rotation of 2 or 4 dimensions; all are equally likely.

    In the plane, a reflection comes with it as often as not: rotations alone would leave it a bias to one side. In four
    dimensions it is x → p·x·q̄ with two random unit quaternions.
    """
    if dimensions == 2:
        cosine, sine = draws.direction(2)
        sign = -1.0 if int(draws.words(1)[0]) >> 63 else 1.0
        return [[cosine, -sine * sign], [sine, cosine * sign]]
    a, b, c, d = draws.direction(4)
    e, f, g, h = draws.direction(4)
    left = [[a, -b, -c, -d], [b, a, -d, c], [c, d, a, -b], [d, -c, b, a]]
    right = [[e, f, g, h], [-f, e, -h, g], [-g, h, e, -f], [-h, -g, f, e]]
    return [[_dot(row, column) for column in zip(*right, strict=True)] for row in left]


def _turned(points: Sequence[Sequence[float]], matrix: _Matrix) -> _Matrix:
    return [[_dot(row, point) for row in matrix] for point in points]


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    """Σ left·right, added from the left: Python's own `sum` rounds in another way from 3.12 on."""
    total = 0.0
    for x, y in zip(left, right, strict=True):
        total += x * y
    return total
