"""The round's random rotation: signs, then a Hadamard transform. All clients of a round share it.

It spreads every value over thousands of others, so that blocks of neighbours are alike, whatever the model, and few
levels do for all (Suresh et al. 2017, *Distributed Mean Estimation with Limited Communication*). Being linear and
shared, it is undone once for the sum of all updates, not once for each.

A vector of d values is cut into blocks of B = min(2**16, largest power of two ≤ d). Where d is no multiple of B, the
last B values get other signs and are transformed once more, overlapping what was transformed before: no padding, and
still a rotation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from device_runtime.codec.randomness import OVERLAP, ROTATION, Draws
from device_runtime.tensors import FloatArray

CHUNK = 1 << 16  # values that are encoded at a time: 256 kB, which stay in a core's cache


def chunks(pieces: Iterable[FloatArray]) -> Iterator[FloatArray]:
    """The values of all pieces, flat, in new arrays of `CHUNK`; the last may be shorter."""
    chunk, filled = np.empty(CHUNK, np.float32), 0
    for piece in pieces:
        values = piece.reshape(-1)
        while values.size:
            taken = min(values.size, CHUNK - filled)
            chunk[filled : filled + taken] = values[:taken]
            values, filled = values[taken:], filled + taken
            if filled == CHUNK:
                yield chunk
                chunk, filled = np.empty(CHUNK, np.float32), 0
    if filled:
        yield chunk[:filled]


def rotated(parts: Iterable[FloatArray], round_number: int) -> Iterator[FloatArray]:
    """The chunks of a vector, rotated in place; no more than two of them are held.

    Args:
        parts: what `chunks` gives.
        round_number: fixes the signs.
    """
    draws = Draws(round_number, ROTATION)
    before: FloatArray | None = None  # a chunk that the last block may still overlap
    for part in parts:
        part *= draws.signs(part.size)
        if part.size == CHUNK:
            _transform(part)
            if before is not None:
                yield before
            before = part
        elif before is None:
            block = _block(part.size)
            for start in range(0, part.size - block + 1, block):
                _transform(part[start : start + block])
            if part.size % block:
                _overlap(part[-block:], round_number)
            before = part
        else:
            last = np.concatenate([before[part.size :], part])
            _overlap(last, round_number)
            before[part.size :], part[:] = last[: -part.size], last[-part.size :]
            yield before
            before = part
    if before is not None:
        yield before


def undo(vector: FloatArray, round_number: int) -> None:
    """Rotate back, in place: the whole of a vector, float32 [d]."""
    if not vector.size:
        return
    block = _block(vector.size)
    if vector.size % block:
        last = vector[-block:]
        _transform(last)
        last *= Draws(round_number, OVERLAP).signs(block)
    draws = Draws(round_number, ROTATION)
    for start in range(0, vector.size - block + 1, block):
        _transform(vector[start : start + block])
    for start in range(0, vector.size, CHUNK):
        part = vector[start : start + CHUNK]
        part *= draws.signs(part.size)


def _block(size: int) -> int:
    return min(CHUNK, 1 << (size.bit_length() - 1))


def _overlap(block: FloatArray, round_number: int) -> None:
    """Transform values that were transformed before; without other signs, what was spread would gather again."""
    block *= Draws(round_number, OVERLAP).signs(block.size)
    _transform(block)


def _transform(block: FloatArray) -> None:
    """Multiply 2**k values by the Hadamard matrix in Sylvester's order, over √(2**k), in place.

    The values are seen as a matrix and transformed along its rows, then along its columns, each time with long runs of
    neighbours. Sums and differences of two values only: the same bits on every machine.
    """
    bits = block.size.bit_length() - 1
    matrix = block.reshape(1 << (bits // 2), -1)
    matrix = _along_rows(_along_rows(matrix).T.copy()).T
    np.multiply(matrix, np.float32(2.0 ** (-bits / 2)), out=block.reshape(matrix.shape))


def _along_rows(matrix: FloatArray) -> FloatArray:
    rows, columns = matrix.shape
    source, target = matrix, np.empty_like(matrix)
    half = 1
    while half < rows:
        pairs, sums = source.reshape(-1, 2, half * columns), target.reshape(-1, 2, half * columns)
        np.add(pairs[:, 0], pairs[:, 1], out=sums[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=sums[:, 1])
        # The caller's own matrix is read only.
        source, target = target, np.empty_like(matrix) if source is matrix else source
        half *= 2
    return source
