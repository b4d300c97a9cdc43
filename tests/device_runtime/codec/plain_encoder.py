"""The encoder of docs/codec.md in plain Python, for vectors of up to one chunk: see `plain_decoder`."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator

from tests.device_runtime.codec.plain_decoder import (
    BLOCK,
    EIGHTHS,
    OVERLAP,
    ROTATION,
    ROUNDING,
    Points,
    coarse,
    dot,
    float32,
    matrix,
    philox,
    scale,
    signs,
    transform,
)

Floats = list[float]


def encode(
    codec: int,
    model: bytes,
    round_number: int,
    weight: int,
    seed: int,
    metrics: dict[str, float],
    values: Floats,
    points: dict[int, Points],
    lengths: dict[int, Floats],
) -> bytes:
    """An update; the codebooks' points are whole numbers of 1/1024."""
    content = struct.pack("<4sHBB8sIQQ", b"PFUD", 2, codec, len(metrics), model, round_number, weight, seed)
    for name, value in sorted(metrics.items()):
        content += bytes([len(name.encode())]) + name.encode() + struct.pack("<d", value)
    words = philox(seed, ROUNDING)
    if codec == 0:
        content += struct.pack(f"<{len(values)}f", *values)
    elif codec == 1:
        content += _half(values, words)
    elif codec in (2, 3):
        content += _levels(codec, _rotated(values, round_number), words)
    else:
        dimensions = 2 if codec == 4 else 4
        content += _points(_rotated(values, round_number), words, points[dimensions], lengths[dimensions])
    return content + struct.pack("<I", zlib.crc32(content))


def _rotated(values: Floats, round_number: int) -> Floats:
    size = len(values)
    values = [x * sign for x, sign in zip(values, signs(philox(round_number, ROTATION), size), strict=True)]
    block = 1 << (size.bit_length() - 1)
    values = transform(values[:block]) + values[block:]
    if size % block:
        turns = signs(philox(round_number, OVERLAP), block)
        last = [x * sign for x, sign in zip(values[size - block :], turns, strict=True)]
        values = values[: size - block] + transform(last)
    return values


def _normalised(values: Floats) -> tuple[Floats, int]:
    """The values over 2**p, and p."""
    largest = max(abs(x) for x in values)
    assert largest < 2.0**60
    if largest < 2.0**-60:
        return [0.0] * len(values), 0
    power = math.frexp(largest)[1]
    return [x if abs(x) >= 2.0**-100 else 0.0 for x in (x * 2.0**-power for x in values)], power


def _chosen(magnitudes: Floats, power: int) -> tuple[Floats, bytes]:
    """One over each block's scale, or 0; and the exponent and the levels."""
    digits, bits = math.frexp(max(magnitudes))
    exponent = 8 * (bits - 1) + sum(float32(x) < 2 * digits for x in EIGHTHS) if digits else 0
    levels = [next(k for k in range(16) if scale(exponent, k) >= magnitude) for magnitude in magnitudes]
    scales = [scale(exponent, level) for level in levels]
    return [float32(1 / x) if x else 0.0 for x in scales], struct.pack("<h", exponent + 8 * power) + _nibbles(levels)


def _nibbles(numbers: list[int]) -> bytes:
    half = -(-len(numbers) // 2)
    return bytes(low | high << 4 for low, high in zip(numbers[:half], [*numbers[half:], 0], strict=False))


def _levels(codec: int, values: Floats, words: Iterator[int]) -> bytes:
    half, lowest = (127.5, -128) if codec == 2 else (7.5, -8)
    values, power = _normalised(values)
    blocks = -(-len(values) // BLOCK)
    inverse, behind = _chosen([max(abs(x) for x in values[block::blocks]) for block in range(blocks)], power)
    factors, shifts = [float32(x * half) for x in inverse], [u - 0.5 for u in coarse(words, blocks)]
    codes = [
        min(max(math.floor(float32(float32(x * factors[i % blocks]) + shifts[i % blocks])), lowest), -1 - lowest)
        for i, x in enumerate(values)
    ]
    return (struct.pack(f"{len(codes)}b", *codes) if codec == 2 else _nibbles([q + 8 for q in codes])) + behind


def _points(values: Floats, words: Iterator[int], points: Points, lengths: Floats) -> bytes:
    dimensions = len(points[0])
    turn = matrix(words, dimensions)
    places = [[x / 1024 for x in point] for point in points]
    turned = [[float32(dot(row, place)) for row in turn] for place in places]
    halves = [float32(dot(place, place) / 2) for place in places]
    values, power = _normalised(values)
    count = -(-len(values) // dimensions)
    padded = values + [0.0] * (count * dimensions - len(values))
    groups = [padded[i : i + dimensions] for i in range(0, len(padded), dimensions)]
    sizes = [float32(math.sqrt(_dot32(group, group))) for group in groups]
    wide = BLOCK // dimensions
    inverse, behind = _chosen([max(sizes[i : i + wide]) for i in range(0, count, wide)], power)
    codes = []
    for i, (group, size, u) in enumerate(zip(groups, sizes, coarse(words, count), strict=True)):
        knot = min(64, math.floor(float32(float32(size * float32(inverse[i // wide] * 64)) + u)))
        stretch = float32(lengths[knot] / size) if size else lengths[knot]
        wanted = [float32(x * stretch) for x in group]
        scores = [float32(_dot32(wanted, point) - half) for point, half in zip(turned, halves, strict=True)]
        codes.append(scores.index(max(scores)))
    codes += [0] * (len(codes) % 2)
    return bytes(low | high << 4 for low, high in zip(codes[::2], codes[1::2], strict=True)) + behind


def _dot32(left: Floats, right: Floats) -> float:
    total = float32(left[0] * right[0])
    for x, y in zip(left[1:], right[1:], strict=True):
        total = float32(total + float32(x * y))
    return total


def _half(values: Floats, words: Iterator[int]) -> bytes:
    values, power = _normalised(values)
    halves = []
    for x, u in zip((x * 2.0**15 for x in values), coarse(words, len(values)), strict=True):
        step = 2.0 ** (max(math.frexp(x)[1] - 1, -14) - 10)
        halves.append(math.floor(float32(x / step + u)) * step)
    return struct.pack(f"<{len(halves)}e", *halves) + struct.pack("<f", 2.0 ** (power - 15))
