"""What a client is told in a round, and its examples, in two files whose paths are all that TFF sees of them.

The first file holds the features: as the model takes them, or as the bytes of images, where there are such. The second
holds, one after the other: int64 [n, E, the client's seed]; float32 [learning rate, factor, what bytes are divided by,
or 0 where there are none]; order int32 [E, n]; seeds int32 [E·n]; the labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_federated as tff

from device_runtime.examples import Examples
from device_runtime.work import ClientWork
from models import ModelSpec
from tff_sim.algorithms.client_data import client_order
from tff_sim.pixels import WHITE, PixelExamples

FILES = 2
_INTEGERS = _FLOATS = 3  # at the start of the second file

client_files_type = tff.TensorType(np.str_, [FILES])


def file_contents(examples: Examples, work: ClientWork, seed: int, factor: float) -> list[list[npt.NDArray[Any]]]:
    """The arrays of each file. The arguments are those of `client_element`."""
    order, seeds = client_order(examples, work, seed)
    features, divisor = (examples.pixels, WHITE) if isinstance(examples, PixelExamples) else (examples.x, 0)
    integers = np.array([len(examples), work.epochs, seed], np.int64)
    floats = np.array([work.learning_rate, factor, divisor], np.float32)
    return [[features], [integers, floats, order, seeds, examples.y]]


def read_client(spec: ModelSpec, files: tf.Tensor) -> dict[str, tf.Tensor]:
    """The `client_element` of the files of these paths, string [2]; for use inside a `tf.function`."""
    features, rest = tf.io.read_file(files[0]), _Reader(tf.io.read_file(files[1]))
    integers, floats = rest.take(tf.int64, _INTEGERS), rest.take(tf.float32, _FLOATS)
    examples, epochs = tf.cast(integers[0], tf.int32), tf.cast(integers[1], tf.int32)
    order, seeds = rest.take(tf.int32, epochs * examples), rest.take(tf.int32, epochs * examples)
    if spec.input.dtype == tf.float32:
        x = tf.cond(floats[2] > 0, lambda: _divided(features, floats[2]), lambda: _decoded(features, tf.float32))
    else:
        x = _decoded(features, spec.input.dtype)
    return {
        "x": tf.reshape(x, [examples, *spec.input.shape[1:]]),
        "y": tf.reshape(rest.remainder(spec.label.dtype), [examples, *spec.label.shape[1:]]),
        "order": tf.reshape(order, [epochs, examples]),
        "seeds": seeds,
        "learning_rate": floats[0],
        "factor": floats[1],
        "seed": integers[2],
    }


def _divided(pixels: tf.Tensor, divisor: tf.Tensor) -> tf.Tensor:
    """`from_pixels` to the bit: TensorFlow would turn a division by a constant into a multiplication."""
    return tf.cast(_decoded(pixels, tf.uint8), tf.float32) / divisor


class _Reader:
    """Arrays out of a string of bytes, one after the other."""

    def __init__(self, content: tf.Tensor) -> None:
        self._content = content
        self._start: Any = 0

    def take(self, dtype: tf.DType, count: Any) -> tf.Tensor:
        size = count * dtype.size
        part = tf.strings.substr(self._content, self._start, size)
        self._start += size
        return _decoded(part, dtype)

    def remainder(self, dtype: tf.DType) -> tf.Tensor:
        return _decoded(tf.strings.substr(self._content, self._start, tf.strings.length(self._content)), dtype)


def _decoded(content: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.io.decode_raw(content, dtype, little_endian=True)
