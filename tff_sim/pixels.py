"""Images kept as the bytes in which they were published: a quarter of the memory of those that models take."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.examples import Examples
from device_runtime.tensors import describe

WHITE = np.float32(255)
_ROWS = 1024  # that become floats at a time, where all of them are looked at


def from_pixels(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Bytes as numbers in [0, 1], float32."""
    return np.divide(images, WHITE, dtype=np.float32)


class PixelExamples(Examples):
    """Examples whose `x` is made of bytes when somebody asks for it.

    Attributes:
        pixels: uint8 [n, …].
    """

    pixels: npt.NDArray[np.uint8]

    def __init__(self, pixels: npt.NDArray[np.uint8], y: npt.NDArray[np.int32]) -> None:
        for name, value in (("pixels", pixels), ("y", y), ("last", None)):
            object.__setattr__(self, name, value)  # as a frozen dataclass does

    @cached_property
    def x(self) -> npt.NDArray[np.float32]:
        return from_pixels(self.pixels)

    def __len__(self) -> int:
        return len(self.pixels)

    @cached_property
    def identity(self) -> str:
        digest = hashlib.sha256(describe(np.broadcast_to(np.float32(0), self.pixels.shape)).encode())
        for x, _ in batches(self, _ROWS):
            digest.update(np.ascontiguousarray(x).data)
        digest.update(describe(self.y).encode())
        digest.update(np.ascontiguousarray(self.y).data)
        return digest.hexdigest()


def batches(examples: Examples, size: int) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """x and y of `size` examples after the other, the last may be fewer; of bytes, no more than these become floats."""
    for start in range(0, len(examples), size):
        rows = slice(start, start + size)
        x = from_pixels(examples.pixels[rows]) if isinstance(examples, PixelExamples) else examples.x[rows]
        yield x, examples.y[rows]
