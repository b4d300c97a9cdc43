"""Encoding in TensorFlow against the device's codec, and adding against the server's: the same to the bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from device_runtime.codec import CODECS, Total, codec_named
from device_runtime.errors import InputError, UpdateError
from device_runtime.tensors import FloatArray
from tests.tff_sim.encoding.wire import device_payload, payload
from tff_sim.encoding.chunks import chunks_of, shapes_of, vector_of
from tff_sim.encoding.codecs import rotated_coder
from tff_sim.encoding.sums import sum_of

SMALL = [1, 2, 3, 31, 32, 33, 127, 1000]
LARGE = [65535, 65536, 65537, 200_000]
ROTATED = [codec for codec in CODECS if codec_named(codec).rotated]

Generator = np.random.Generator


def _normal(rng: Generator, size: int) -> npt.NDArray[np.float64]:
    return rng.standard_normal(size)


# A real delta is made of layers, each with a magnitude of its own, and of zeros where units are dead.
DELTAS: dict[str, Callable[[Generator, int], npt.NDArray[np.float64]]] = {
    "layers": lambda rng, size: np.sort(10.0 ** rng.integers(-5, 0, size)) * _normal(rng, size),
    "sparse": lambda rng, size: _normal(rng, size) * (rng.random(size) < 0.02),
    "zeros": lambda rng, size: np.zeros(size),
    "negative zeros": lambda rng, size: -np.zeros(size),
    "all alike": lambda rng, size: np.full(size, 0.1),
    "one": lambda rng, size: np.where(np.arange(size) == size // 3, -1e9, 0.0),
    "all magnitudes": lambda rng, size: np.exp2(rng.integers(-100, 40, size)) * _normal(rng, size),
    "tiny at first": lambda rng, size: np.where(np.arange(size) < size // 2 - 1, 1e-26, 1.0) * _normal(rng, size),
    "tiny at last": lambda rng, size: np.where(np.arange(size) > size // 2 + 1, 1e-26, 1.0) * _normal(rng, size),
    "huge": lambda rng, size: 2.0**52 * np.clip(_normal(rng, size), -4, 4) / max(size, 4) ** 0.5 * 32,
    "too small": lambda rng, size: 2.0**-70 * np.clip(_normal(rng, size), -4, 4),
    "nearly too small": lambda rng, size: 2.0**-61 * _normal(rng, size),
    "powers of two": lambda rng, size: np.exp2(rng.integers(-12, 1, size)),
}


@pytest.fixture(scope="module")
def encode() -> Callable[..., tuple[bytes, bool]]:
    """`encode(codec, delta, round_number, seed)`: the bytes of the values, and whether a device would encode them."""

    def run(codec: str, delta: FloatArray, round_number: int, seed: int) -> tuple[bytes, bool]:
        # Small vectors operation by operation, large ones as a graph, which TensorFlow's optimiser goes over.
        function = _graph(codec, delta.size) if delta.size > 1000 else sum_of(codec, delta.size).encode
        encoded, fine = function(tf.constant(delta), tf.constant(round_number, tf.int64), tf.constant(seed, tf.int64))
        return payload(codec, delta.size, encoded), bool(fine)

    graphs: dict[tuple[str, int], Callable[..., tuple[list[object], tf.Tensor]]] = {}

    def _graph(codec: str, size: int) -> Callable[..., tuple[list[object], tf.Tensor]]:
        key = (codec, size)
        if key not in graphs:
            graphs[key] = tf.function(sum_of(codec, size).encode, autograph=False)
        return graphs[key]

    return run


@pytest.mark.parametrize("size", SMALL + LARGE)
@pytest.mark.parametrize("codec", CODECS)
def test_bytes_are_those_of_a_device(encode: Callable[..., tuple[bytes, bool]], codec: str, size: int) -> None:
    for number, (name, delta_of) in enumerate(DELTAS.items()):
        rng = np.random.default_rng([number, size])
        delta = delta_of(rng, size).astype(np.float32)
        delta[np.abs(delta) < np.finfo(np.float32).tiny] = 0  # TensorFlow takes subnormal numbers for zeros
        round_number, seed = int(rng.integers(1, 2**31)), int(rng.integers(0, 2**53))
        encoded, fine = encode(codec, delta, round_number, seed)
        assert fine
        assert encoded == device_payload(codec, delta, round_number, seed), name


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**72, -(2.0**127)])
@pytest.mark.parametrize("codec", CODECS)
def test_what_a_device_refuses_is_not_fine_and_has_finite_codes(
    encode: Callable[..., tuple[bytes, bool]], codec: str, value: float
) -> None:
    delta = np.random.default_rng(3).standard_normal(70_000).astype(np.float32)
    delta[69_999] = value
    encoded, fine = encode(codec, delta, 1, 2)
    if codec == "f32" and np.isfinite(value):
        assert fine
        return
    assert not fine
    with pytest.raises(UpdateError):
        device_payload(codec, delta, 1, 2)
    assert codec == "f32" or codec_named(codec).finite(memoryview(encoded), delta.size)


@pytest.mark.parametrize("size", [1, 33, 1000, 65_537, 140_000])
@pytest.mark.parametrize("codec", ROTATED)
def test_adding_is_that_of_a_server(codec: str, size: int) -> None:
    """Three updates, of weights that are no power of two."""
    total, coder, running = Total(size), rotated_coder(codec, size), sum_of(codec, size)
    state = running.zero()
    for weight, seed in ((7, 11), (601, 2**53 - 1), (123_457, 5)):
        delta = np.random.default_rng(seed).standard_normal(size).astype(np.float32) * np.float32(1e-3)
        encoded, _ = running.encode(tf.constant(delta), tf.constant(4, tf.int64), tf.constant(seed, tf.int64))
        codec_named(codec).coder(seed).add(memoryview(device_payload(codec, delta, 4, seed)), total, weight)
        arguments = encoded, tf.constant(seed, tf.int64), tf.constant(weight, tf.float32)
        recent, offsets = coder.add(state["recent"], state["offsets"], *arguments)
        state = running.add(state, *arguments)
        for got in ((recent, offsets), (state["recent"], state["offsets"])):
            assert vector_of(got[0]).numpy().tobytes() == total.values.tobytes()
            assert vector_of(got[1]).numpy().tobytes() == total.offsets.tobytes()


@pytest.mark.parametrize("codec", ["f16", "q4", "q1"])
def test_two_sums_merge_into_one(codec: str) -> None:
    """Each of 19 updates, so that some are in float32 yet; the result is the float64 sum of both."""
    size = 70_000
    running = sum_of(codec, size)
    one_round, nothing = tf.constant(1, tf.int64), running.zero()
    sums = []
    for seed in (1, 2):
        delta = tf.constant(np.random.default_rng(seed).standard_normal(size).astype(np.float32))
        encoded, _ = running.encode(delta, one_round, tf.constant(seed, tf.int64))
        total = nothing
        for _ in range(19):
            total = running.add(total, encoded, tf.constant(seed, tf.int64), tf.constant(3.0))
        sums.append(total)
    examples = tf.constant(57.0, tf.float64)
    means = [running.mean(total, examples, one_round).numpy() for total in sums]
    both = running.mean(running.merge(*sums), examples, one_round).numpy()
    np.testing.assert_allclose(both, means[0] + means[1], rtol=0, atol=1e-5)
    assert np.abs(both - means[0]).max() > 1
    for pair in ((sums[0], nothing), (nothing, sums[0])):
        np.testing.assert_array_equal(running.mean(running.merge(*pair), examples, one_round), means[0])


def test_chunks_of_a_vector_are_that_vector() -> None:
    vector = tf.range(140_000)
    pieces = chunks_of(vector, shapes_of(140_000))
    assert [piece.shape for piece in pieces] == [(2, 65536), (1, 8928)]
    np.testing.assert_array_equal(vector_of(pieces), vector)
    assert shapes_of(65536, 32) == [(1, 2048)]
    assert shapes_of(65537, 32) == [(1, 2048), (1, 1)]


def test_an_unknown_codec_is_named() -> None:
    with pytest.raises(InputError) as caught:
        sum_of("q3", 5)
    assert str(caught.value) == "unknown codec 'q3'; known codecs: f32, f16, q8, q4, q2, q1"
