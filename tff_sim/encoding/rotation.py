"""The round's random rotation in TensorFlow, to the bit that of `device_runtime.codec.rotation`."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from device_runtime.codec.randomness import OVERLAP, ROTATION
from device_runtime.codec.rotation import CHUNK
from tff_sim.encoding.chunks import by_chunk, chunks_of, vector_of
from tff_sim.encoding.randomness import signs

_BITS = 4  # of an index that are gone through at a time: 16 runs of values, and their sums and differences


def rotated(values: Any, round_number: Any) -> Any:
    """A vector, float32 [n], rotated."""
    size = values.shape[0]
    block = _block(size)
    values *= signs(round_number, ROTATION, size)
    values = _transformed_runs(values, block)
    if size % block:
        last = _transform(values[-block:] * signs(round_number, OVERLAP, block))
        values = tf.concat([values[:-block], last], axis=0)
    return values


def undone(values: Any, round_number: Any) -> Any:
    """A vector, float32 [n], rotated back."""
    size = values.shape[0]
    block = _block(size)
    if size % block:
        last = _transform(values[-block:]) * signs(round_number, OVERLAP, block)
        values = tf.concat([values[:-block], last], axis=0)
    return _transformed_runs(values, block) * signs(round_number, ROTATION, size)


def _block(size: int) -> int:
    return min(CHUNK, 1 << (size.bit_length() - 1))


def _transformed_runs(values: Any, block: int) -> Any:
    runs, rest = divmod(values.shape[0], block)
    whole, *last = chunks_of(values, [(runs, block)] + [(1, rest)] * bool(rest))
    return vector_of([by_chunk(_transform, whole), *last])


@tf.function(autograph=False)  # traced once for each size
def _transform(block: Any) -> Any:
    """2**k values times the Hadamard matrix in Sylvester's order, over √(2**k).

    Seen as a matrix, along its rows and then along its columns: the upper half of the index's bits, then the lower.
    """
    bits = block.shape[0].bit_length() - 1
    rows = 1 << (bits // 2)
    matrix = tf.transpose(_along_rows(tf.reshape(block, [rows, -1])))
    matrix = tf.transpose(_along_rows(matrix))
    return tf.reshape(matrix, [-1]) * np.float32(2.0 ** (-bits / 2))


def _along_rows(matrix: Any) -> Any:
    rows, columns = matrix.shape
    bits, done = rows.bit_length() - 1, 0
    while done < bits:
        taken = min(_BITS, bits - done)
        runs = tf.unstack(tf.reshape(matrix, [-1, 1 << taken, columns << done]), axis=1)
        for bit in range(taken):
            runs = _butterflies(runs, 1 << bit)
        matrix = tf.stack(runs, axis=1)
        done += taken
    return tf.reshape(matrix, [rows, columns])


def _butterflies(runs: list[Any], half: int) -> list[Any]:
    """Sums and differences of those two whose numbers differ in one bit."""
    return [
        runs[number - half] - run if number & half else run + runs[number + half] for number, run in enumerate(runs)
    ]
