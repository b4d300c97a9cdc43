"""A second decoder, written from docs/codec.md in plain Python: no numpy, nothing of `device_runtime`.

Slow, and only as long as the format needs. It is what somebody would write in another language.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

CHUNK, BLOCK = 65_536, 32
ROUNDING, ROTATION, OVERLAP = 2**63, 2**63 + 1, 2**63 + 2
EIGHTHS = (1.0, 1.0905077, 1.1892071, 1.2968396, 1.4142135, 1.5422108, 1.6817929, 1.8340081)
Points = list[list[int]]


def float32(value: float) -> float:
    """The nearest float32; float64 holds sums and products of two float32 well enough to round them once."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def philox(seed: int, stream: int) -> Iterator[int]:
    """The words of Philox 4x64-10 with the key [seed, stream], from counter 1 on."""
    mask, counter = 2**64 - 1, 0
    while True:
        counter += 1
        c0, c1, c2, c3, k0, k1 = counter, 0, 0, 0, seed, stream
        for _ in range(10):
            first, second = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
            c0, c1, c2, c3 = second >> 64 ^ c1 ^ k0, second & mask, first >> 64 ^ c3 ^ k1, first & mask
            k0, k1 = k0 + 0x9E3779B97F4A7C15 & mask, k1 + 0xBB67AE8584CAA73B & mask
        yield from (c0, c1, c2, c3)


def signs(words: Iterator[int], count: int) -> list[float]:
    """From the bits of whole words, the lowest first."""
    drawn = [next(words) for _ in range(-(-count // 64))]
    return [-1.0 if drawn[i // 64] >> i % 64 & 1 else 1.0 for i in range(count)]


def coarse(words: Iterator[int], count: int) -> list[float]:
    """From the quarters of whole words, the lowest first."""
    drawn = [next(words) for _ in range(-(-count // 4))]
    return [(drawn[i // 4] >> 16 * (i % 4) & 0xFFFF) / 65_536 for i in range(count)]


def transform(values: list[float]) -> list[float]:
    """The Hadamard transform: first over the upper half of the index's bits, then over the lower."""
    bits = len(values).bit_length() - 1
    low = bits - bits // 2
    values = list(values)
    for bit in (*range(low, bits), *range(low)):
        for i in range(len(values)):
            if not i >> bit & 1:
                x, y = values[i], values[i | 1 << bit]
                values[i], values[i | 1 << bit] = float32(x + y), float32(x - y)
    factor = float32(2.0 ** (-bits / 2))
    return [float32(x * factor) for x in values]


def rotated_back(values: list[float], round_number: int) -> list[float]:
    """Of a vector of up to one chunk."""
    size = len(values)
    block = 1 << (size.bit_length() - 1)
    if size % block:
        last = transform(values[size - block :])
        turns = signs(philox(round_number, OVERLAP), block)
        values = values[: size - block] + [x * turn for x, turn in zip(last, turns, strict=True)]
    values = transform(values[:block]) + values[block:]
    return [x * turn for x, turn in zip(values, signs(philox(round_number, ROTATION), size), strict=True)]


def direction(words: Iterator[int], dimensions: int) -> list[float]:
    """A unit vector."""
    while True:
        point = [2.0 * (next(words) >> 11) / 2**53 - 1.0 for _ in range(dimensions)]
        squared = 0.0
        for x in point:
            squared += x * x
        if 2.0**-20 <= squared < 1.0:
            return [x / math.sqrt(squared) for x in point]


def dot(left: list[float], right: list[float]) -> float:
    total = 0.0
    for x, y in zip(left, right, strict=True):
        total += x * y
    return total


def matrix(words: Iterator[int], dimensions: int) -> list[list[float]]:
    """The update's rotation of a group."""
    if dimensions == 2:
        cosine, sine = direction(words, 2)
        sign = -1.0 if next(words) >> 63 else 1.0
        return [[cosine, -sine * sign], [sine, cosine * sign]]
    a, b, c, d = direction(words, 4)
    e, f, g, h = direction(words, 4)
    left = [[a, -b, -c, -d], [b, a, -d, c], [c, d, a, -b], [d, -c, b, a]]
    columns = [[e, -f, -g, -h], [f, e, h, -g], [g, -h, e, f], [h, g, -f, e]]  # of the right factor
    return [[dot(row, column) for column in columns] for row in left]


def scale(exponent: int, level: int) -> float:
    """2**((e + k − 15)/8), to float32's precision; 0 for level 0."""
    eighths = exponent + level - 15
    return float32(EIGHTHS[eighths % 8]) * 2.0 ** (eighths // 8) if level else 0.0


def nibbles(packed: bytes, count: int) -> list[int]:
    """The first half in the low bits, the second half in the high ones."""
    return ([byte & 15 for byte in packed] + [byte >> 4 for byte in packed])[:count]


@dataclass(frozen=True)
class Decoded:
    """All that an update holds."""

    codec: int
    model: bytes
    round_number: int
    weight: int
    metrics: dict[str, float]
    values: list[float]


def decode(data: bytes, size: int, points: dict[int, Points]) -> Decoded:
    """An update of a model with so many values, at most one chunk.

    Args:
        data: the bytes.
        size: number of values.
        points: the codebooks by dimensions, whole numbers of 1/1024.
    """
    assert 0 < size <= CHUNK
    assert zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")
    magic, version, codec, count, model, round_number, weight, seed = struct.unpack_from("<4sHBB8sIQQ", data)
    assert (magic, version) == (b"PFUD", 2)
    place, metrics = 36, {}
    for _ in range(count):
        end = place + 1 + data[place]
        (metrics[data[place + 1 : end].decode()],) = struct.unpack_from("<d", data, end)
        place = end + 8
    payload, words = data[place:-4], philox(seed, ROUNDING)
    if codec == 0:
        values = [x + 0.0 for x in struct.unpack(f"<{size}f", payload)]
    elif codec == 1:
        (unit,) = struct.unpack("<f", payload[2 * size :])
        values = [float32(x * unit) + 0.0 for x in struct.unpack(f"<{size}e", payload[: 2 * size])]
    else:
        values = rotated_back(_rotated(codec, payload, size, words, points), round_number)
    return Decoded(codec, model, round_number, weight, metrics, values)


def _rotated(codec: int, payload: bytes, size: int, words: Iterator[int], points: dict[int, Points]) -> list[float]:
    blocks = -(-size // BLOCK)
    codes = payload[: len(payload) - 2 - -(-blocks // 2)]
    (exponent,) = struct.unpack_from("<h", payload, len(codes))
    scales = [scale(exponent, level) for level in nibbles(payload[len(codes) + 2 :], blocks)]
    if codec in (2, 3):
        numbers = list(struct.unpack(f"{size}b", codes)) if codec == 2 else [code - 8 for code in nibbles(codes, size)]
        half, lowest = (127.5, 0) if codec == 2 else (7.5, -8)
        steps = [float32(x / half) for x in scales]
        offsets = [float32((1.0 - u + lowest) * step) for u, step in zip(coarse(words, blocks), steps, strict=True)]
        # Codes of q4 count from 0 here, as they stand in the bytes.
        return [
            float32(float32((number - lowest) * steps[i % blocks]) + offsets[i % blocks]) + 0.0
            for i, number in enumerate(numbers)
        ]
    dimensions = 2 if codec == 4 else 4
    turn = matrix(words, dimensions)
    turned = [[float32(dot(row, [x / 1024 for x in point])) for row in turn] for point in points[dimensions]]
    values = []
    for group in range(-(-size // dimensions)):
        code = codes[group // 2] >> 4 * (group % 2) & 15
        values += [float32(scales[group * dimensions // BLOCK] * x) + 0.0 for x in turned[code]]
    return values[:size]
