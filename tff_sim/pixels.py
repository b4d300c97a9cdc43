"""Images kept as the bytes in which they were published: a quarter of the memory of those that models take."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property

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
    """Examples whose `x` is made of bytes when somebody asks for it, and is kept then.

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

    @cached_property
    def identity(self) -> str:
        digest = hashlib.sha256(describe(np.broadcast_to(np.float32(0), self.pixels.shape)).encode())
        for part in batches(self, _ROWS):
            digest.update(np.ascontiguousarray(part.x).data)
        digest.update(describe(self.y).encode())
        digest.update(np.ascontiguousarray(self.y).data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        return f"PixelExamples(pixels={describe(self.pixels)}, y={describe(self.y)})"


def rows(examples: Examples, index: slice | npt.NDArray[np.int64]) -> Examples:
    """Some of the examples; bytes stay bytes."""
    if isinstance(examples, PixelExamples):
        return PixelExamples(examples.pixels[index], examples.y[index])
    return Examples(examples.x[index], examples.y[index])


def batches(examples: Examples, size: int) -> Iterator[Examples]:
    """`size` examples after the other; the last may be fewer."""
    for start in range(0, len(examples), size):
        yield rows(examples, slice(start, start + size))
