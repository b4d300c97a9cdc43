"""Other ways to encode an update, each as what the server reads: why the codecs are as they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from benchmarks import eden
from device_runtime.codec.codecs import codec_named
from device_runtime.codec.rotation import CHUNK, chunks, rotated, undo
from device_runtime.codec.total import Total
from device_runtime.tensors import FloatArray

RoundTrip = Callable[[FloatArray, int, int], FloatArray]
"""From values, float32 [d], a client's number and a round's: what the server reads, float32 [d]."""

_Doubles = npt.NDArray[np.float64]
_OUTLIERS = 1 / 512  # of QUIC-FL's values go as they are
_BLOCK = 512
_GRID = 200_001
_SWEEPS = 50


def lossy(bits: int) -> dict[str, RoundTrip]:
    """Name → quantiser of so many bits a value."""
    codec = f"q{bits}"
    named: dict[str, RoundTrip] = {
        f"{codec}: as in the codec": partial(_codec, codec),
        "EDEN, a rotation for each client": lambda values, client, number: eden.round_trip(values, bits, client),
        "EDEN's levels under the round's rotation": lambda values, client, number: eden.round_trip(
            values, bits, client, shared=number
        ),
        "QUIC-FL's levels, rounded at random, under the round's rotation": partial(_quicfl, bits),
        f"{codec} without a rotation": partial(_codec, codec, rotate=False),
        "blocks of 512, rounded at random, without a rotation": partial(_blocks, bits),
    }
    if bits <= 2:
        named["top-k of the same size, float16"] = lambda values, client, number: top_k(values, bits)
    return named


def _codec(name: str, values: FloatArray, client: int, number: int, rotate: bool = True) -> FloatArray:
    codec = codec_named(name)
    seed = 1000 * number + client
    coder = codec.coder(seed)
    parts = chunks([values])
    payload = b"".join([*map(coder.encode, rotated(parts, number) if rotate else parts), coder.finish()])
    total = Total(values.size)
    codec.coder(seed).add(memoryview(payload), total, 1.0)
    result = total.settle()
    if rotate:
        undo(result, number)
    return result


def _quicfl(bits: int, values: FloatArray, client: int, number: int) -> FloatArray:
    """QUIC-FL (Ben Basat et al. 2024) without randomness that client and server share.

    Rotated values, as normal ones, lie between levels that have the least error for these when rounding at random;
    the few beyond the last level are sent as they are.
    """
    rng = np.random.Generator(np.random.Philox(key=[client, number]))
    levels = stochastic_levels(bits)
    result = np.empty_like(values)
    for place, chunk in enumerate(rotated(chunks([values]), number)):
        unit = np.float32(math.sqrt(float(np.dot(chunk, chunk)) / chunk.size)) or np.float32(1)
        normal = chunk / unit
        above = np.clip(np.searchsorted(levels, normal), 1, levels.size - 1)
        low, high = levels[above - 1], levels[above]
        up = rng.random(chunk.size, np.float32) < (normal - low) / (high - low)
        sent = np.where(np.abs(normal) > levels[-1], normal, np.where(up, high, low))
        result[place * CHUNK : place * CHUNK + chunk.size] = sent * unit
    undo(result, number)
    return result


@cache
def stochastic_levels(bits: int) -> FloatArray:
    """2**bits levels with the least expected (z − a)·(b − z) for a normal z between its neighbours a and b.

    The outermost hold all but the outliers. Each of the others is put where its own part of the error is least, in
    turn.
    """
    edge = NormalDist().inv_cdf(1 - _OUTLIERS / 2)
    grid = np.linspace(-edge, edge, _GRID)
    density = np.exp(-grid * grid / 2)
    mass, moment = np.cumsum(density), np.cumsum(density * grid)

    def between(cumulated: _Doubles, low: _Doubles, high: _Doubles) -> _Doubles:
        return np.asarray(np.interp(high, grid, cumulated) - np.interp(low, grid, cumulated))

    # As dense as they are where there are many of them: the third root of the values' own density.
    wide = NormalDist(0, math.sqrt(3))
    shares = np.linspace(wide.cdf(-edge), wide.cdf(edge), 2**bits)
    levels = np.array([-edge, *(wide.inv_cdf(share) for share in shares[1:-1]), edge])
    for _ in range(_SWEEPS):
        for start in (1, 2):  # every second one: its neighbours stand still
            moved = levels[start:-1:2]
            below, above = levels[start - 1 : -2 : 2][: moved.size], levels[start + 1 :: 2][: moved.size]
            low, high = below, above
            for _ in range(30):  # bisection
                middle = (low + high) / 2
                # The derivative of the error with respect to this level.
                left = between(moment, below, middle) - below * between(mass, below, middle)
                right = above * between(mass, middle, above) - between(moment, middle, above)
                low, high = np.where(left < right, middle, low), np.where(left < right, high, middle)
            levels[start:-1:2] = (low + high) / 2
    return levels.astype(np.float32)


def _blocks(bits: int, values: FloatArray, client: int, number: int) -> FloatArray:
    """Blocks of 512 values over the largest of each, float32; levels at equal distances, rounded at random."""
    rng = np.random.Generator(np.random.Philox(key=[client, number]))
    half = np.float32((2**bits - 1) / 2)
    blocks = np.zeros((-(-values.size // _BLOCK), _BLOCK), np.float32)
    blocks.reshape(-1)[: values.size] = values
    scales = np.abs(blocks).max(axis=1, keepdims=True) / half
    steps = blocks / np.where(scales > 0, scales, 1) + half
    steps = np.minimum(np.floor(steps + rng.random(steps.shape, np.float32)), 2 * half) - half
    result: FloatArray = (steps * scales).reshape(-1)[: values.size].astype(np.float32)
    return result


def kept(size: int, bits: int) -> int:
    """How many values top-k sends in the bytes of `qN`: 16 bits each, and what its place takes at least.

    Gaps between places that are drawn at random take log₂(size/k) + 1.5 bits in a Golomb code.
    """
    budget = 8 * codec_named(f"q{bits}").size(size)
    return next(k for k in range(size, 0, -max(1, size // 10_000)) if k * (17.5 + math.log2(size / k)) <= budget)


def top_k(values: FloatArray, bits: int) -> FloatArray:
    """The largest values alone, float16 over the largest."""
    count = kept(values.size, bits)
    places = np.argpartition(np.abs(values), values.size - count)[values.size - count :]
    result = np.zeros_like(values)
    largest = np.abs(values).max() or np.float32(1)
    result[places] = (values[places] / largest).astype(np.float16).astype(np.float32) * largest
    return result
