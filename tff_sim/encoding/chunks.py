"""A vector as the chunks that the codecs handle one by one.

A list of matrices [chunks, size]: all whole chunks, then the last, shorter one; either may be missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from device_runtime.codec.rotation import CHUNK

Chunks = list[Any]


def shapes_of(size: int, share: int = 1) -> list[tuple[int, int]]:
    """The shapes of the matrices for a vector of this size, where an entry stands for `share` values."""
    whole, rest = divmod(size, CHUNK)
    shapes = [(whole, CHUNK // share)] if whole else []
    return [*shapes, (1, -(-rest // share))] if rest else shapes


def chunks_of(vector: Any, shapes: list[tuple[int, int]]) -> Chunks:
    """A vector as matrices of these shapes, one after the other."""
    pieces, start = [], 0
    for rows, columns in shapes:
        end = start + rows * columns
        pieces.append(tf.reshape(vector[start:end], [rows, columns]))
        start = end
    return pieces


def vector_of(pieces: list[Any]) -> Any:
    """Chunks as a vector."""
    return tf.concat([tf.reshape(piece, [-1]) for piece in pieces], axis=0)


def by_chunk(function: Callable[..., Any], *pieces: Any) -> Any:
    """`function` of the rows of some [chunks, …], chunk by chunk: the values of one stay in a core's cache."""
    if pieces[0].shape[0] == 1:
        results = function(*(piece[0] for piece in pieces))
        return tf.nest.map_structure(lambda result: result[None], results)
    one = [tf.TensorSpec(piece.shape[1:], piece.dtype) for piece in pieces]
    graph = tf.function(function, autograph=False).get_concrete_function(*one)
    signature = tf.nest.map_structure(tf.TensorSpec.from_tensor, graph.structured_outputs)
    return tf.map_fn(lambda rows: graph(*rows), pieces, fn_output_signature=signature)
