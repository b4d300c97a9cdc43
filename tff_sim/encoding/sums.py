"""A server's sum of encoded updates in TensorFlow, to the bit that of `aggregation_server.aggregation.aggregate`.

The server's class is not imported, since simulation and server know the contract alone; a test holds one against the
other. A sum is a structure of tensors, with pure functions on it.
"""

from __future__ import annotations

import collections
from typing import Any, Protocol

import tensorflow as tf

from device_runtime.codec.levels import BLOCK
from tff_sim.encoding import rotation
from tff_sim.encoding.chunks import Chunks, chunks_of, shapes_of, vector_of
from tff_sim.encoding.codecs import PlainCoder, RotatedCoder, is_rotated, plain_coder, rotated_coder

FEW = 16  # updates that are added in float32 before their sum goes into the one in float64


class Sum(Protocol):
    """Σ n_k·delta_k of the updates of a round."""

    def encode(self, values: Any, round_number: Any, seed: Any) -> tuple[Chunks, Any]:
        """A client's part: a vector, float32 [n], encoded; and whether a device would encode it."""
        ...

    def zero(self) -> Any:
        """The sum of nothing."""
        ...

    def add(self, total: Any, encoded: Chunks, seed: Any, weight: Any) -> Any:
        """The sum with `weight`, float32, times an encoded update."""
        ...

    def merge(self, one: Any, other: Any) -> Any:
        """Of two sums one."""
        ...

    def mean(self, total: Any, examples: Any, round_number: Any) -> Any:
        """The sum over `examples`, float64, rotated back, float32 [n]; NaN where there are none, 0/0."""
        ...


def sum_of(codec: str, size: int) -> Sum:
    """The sum of updates with so many values; `InputError` where there is no such codec."""
    if is_rotated(codec):
        return _RotatedSum(rotated_coder(codec, size), size)
    return _PlainSum(plain_coder(codec, size), size)


class _PlainSum:
    """Of updates as they are, float64 alone."""

    def __init__(self, coder: PlainCoder, size: int) -> None:
        self._coder = coder
        self._shapes = shapes_of(size)

    def encode(self, values: Any, _round_number: Any, seed: Any) -> tuple[Chunks, Any]:
        return self._coder.encode(chunks_of(values, self._shapes), seed)

    def zero(self) -> Any:
        return [tf.zeros(shape, tf.float64) for shape in self._shapes]

    def add(self, total: Any, encoded: Chunks, _seed: Any, weight: Any) -> Any:
        factor = tf.cast(weight, tf.float64)
        new = self._coder.values(encoded)
        return [part + tf.cast(values, tf.float64) * factor for part, values in zip(total, new, strict=True)]

    def merge(self, one: Any, other: Any) -> Any:
        return [a + b for a, b in zip(one, other, strict=True)]

    def mean(self, total: Any, examples: Any, _round_number: Any) -> Any:
        return tf.cast(vector_of(total) / examples, tf.float32)


class _RotatedSum:
    """Of rotated updates: a few in float32, all before them in float64."""

    def __init__(self, coder: RotatedCoder, size: int) -> None:
        self._coder = coder
        self._shapes = shapes_of(size)
        self._block_shapes = shapes_of(size, BLOCK)

    def encode(self, values: Any, round_number: Any, seed: Any) -> tuple[Chunks, Any]:
        return self._coder.encode(chunks_of(rotation.rotated(values, round_number), self._shapes), seed)

    def zero(self) -> Any:
        return self._flushed([tf.zeros(shape, tf.float64) for shape in self._shapes])

    def add(self, total: Any, encoded: Chunks, seed: Any, weight: Any) -> Any:
        recent, offsets = self._coder.add(total["recent"], total["offsets"], encoded, seed, weight)
        new = collections.OrderedDict(sum=total["sum"], recent=recent, offsets=offsets, count=total["count"] + 1)
        return tf.cond(new["count"] < FEW, lambda: new, lambda: self._flushed(_settled(new)))

    def merge(self, one: Any, other: Any) -> Any:
        return self._flushed([a + b for a, b in zip(_settled(one), _settled(other), strict=True)])

    def mean(self, total: Any, examples: Any, round_number: Any) -> Any:
        mean = tf.cast(vector_of(_settled(total)) / examples, tf.float32)
        return rotation.undone(mean, round_number)

    def _flushed(self, total: Chunks) -> Any:
        return collections.OrderedDict(
            sum=total,
            recent=[tf.zeros(shape) for shape in self._shapes],
            offsets=[tf.zeros(shape) for shape in self._block_shapes],
            count=tf.zeros([], tf.int32),
        )


def _settled(total: Any) -> Chunks:
    """The whole of a sum, float64."""
    return [
        part + tf.cast(recent + tf.tile(offsets, [1, BLOCK])[:, : recent.shape[1]], tf.float64)
        for part, recent, offsets in zip(total["sum"], total["recent"], total["offsets"], strict=True)
    ]
