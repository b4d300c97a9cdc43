"""The codecs by their laws: identity, bounds, and expected values that are exact."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import codec
from device_runtime.codec import codebook, tables
from device_runtime.codec.randomness import ROUNDING, Draws
from device_runtime.errors import UpdateError
from device_runtime.tensors import FloatArray, TensorSpec
from device_runtime.update import ClientUpdate

MODEL = "0123456789abcdef" * 2
QUANTISED = ("q8", "q4", "q2", "q1")
LOSSY = ("f16", *QUANTISED)

finite = st.floats(width=32, min_value=-(2.0**50), max_value=2.0**50)
vectors = st.lists(finite, min_size=1, max_size=100).map(lambda values: np.array(values, np.float32))


def through(values: FloatArray, name: str, seed: int = 0) -> FloatArray:
    """A flat vector, encoded and decoded."""
    specs = (TensorSpec("t", values.shape),)
    data = codec.encode(ClientUpdate((values,), 1, 1), specs, MODEL, name, seed)
    assert len(data) == codec.encoded_size(specs, name)
    assert codec.read_update(data, specs, MODEL).finite
    return codec.decode(data, specs, MODEL).delta[0]


@given(vectors)
def test_f32_is_the_identity_bit_for_bit(values: FloatArray) -> None:
    assert (through(values, "f32") + np.float32(0)).tobytes() == (values + np.float32(0)).tobytes()


@given(vectors, st.integers(0, 2**53 - 1))
def test_f16_is_off_by_less_than_one_step_of_float16(values: FloatArray, seed: int) -> None:
    error = np.abs(through(values, "f16", seed).astype(np.float64) - values)
    # float16's own steps are 2**-10 of a value; the smallest are 2**-24, and the largest value comes above 2**14.
    step = np.maximum(np.abs(values.astype(np.float64)) * 2**-10, np.abs(values).max() * 2.0**-38)
    assert (error <= np.maximum(step, 2.0**-60)).all()


@pytest.mark.parametrize(("name", "levels"), [("q8", 255), ("q4", 15)])
@given(vectors, st.integers(0, 2**53 - 1))
def test_q8_and_q4_are_off_by_half_a_step_at_most(name: str, levels: int, values: FloatArray, seed: int) -> None:
    error = through(values, name, seed).astype(np.float64) - values
    # Rotated, no value is larger than the vector's length, nor a scale than 2**(1/8) of the largest value.
    length = np.linalg.norm(values.astype(np.float64))
    step = 2 * length * 2**0.125 / levels
    assert np.linalg.norm(error) <= np.sqrt(values.size) * step / 2 * 1.001 + 1e-16


@pytest.mark.parametrize("name", codec.CODECS)
@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 100, 65_537])
def test_zeros_stay_zeros(name: str, size: int) -> None:
    assert not through(np.zeros(size, np.float32), name).any()


@pytest.mark.parametrize("name", LOSSY)
def test_a_vector_that_is_mostly_zeros_keeps_its_length(name: str) -> None:
    values = np.zeros(70_000, np.float32)
    values[::7000] = 1
    back = np.mean([through(values, name, seed) for seed in range(20)], axis=0, dtype=np.float64)
    assert back @ values == pytest.approx(10, rel=0.03)


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("value", [2.0**60, -(2.0**90), 3e38])
def test_values_that_are_too_large_are_refused(name: str, value: float) -> None:
    with pytest.raises(
        UpdateError, match=r"^update: holds values that are not finite, or too large to be encoded$"
    ) as caught:
        through(np.array([value], np.float32), name)
    assert caught.value.reason == "non_finite"


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("scale", [1e-45, 1e-38, 2.0**-70, 2.0**-59, 1e-10, 1.0, 2.0**57])
def test_scales_do_not_matter(name: str, scale: float) -> None:
    values = np.random.default_rng(0).normal(size=500).astype(np.float32)
    scaled = values * np.float32(scale)
    error = np.linalg.norm(through(scaled, name) - scaled.astype(np.float64)) / np.linalg.norm(
        scaled.astype(np.float64)
    )
    assert error <= 1 if scale < 2.0**-59 else error < {"q8": 0.01, "q4": 0.12, "q2": 0.5, "q1": 1.0}[name]


def deviations(round_trip: Callable[[FloatArray, int], FloatArray], values: FloatArray, seeds: int) -> float:
    """How many standard errors the mean error is from zero, the worst of: along the vector, and along random ones."""
    errors = np.stack([round_trip(values, seed).astype(np.float64) - values for seed in range(seeds)])
    axes = np.random.default_rng(0).normal(size=(values.size, 100))
    projections = np.column_stack([errors @ values.astype(np.float64), errors @ axes])
    standard_error = projections.std(axis=0, ddof=1) / np.sqrt(seeds)
    return float((np.abs(projections.mean(axis=0)) / np.maximum(standard_error, 1e-30)).max())


INPUTS = {
    "normal": np.random.default_rng(1).normal(size=300),
    "positive": np.abs(np.random.default_rng(2).normal(size=70)),
    "one large": np.r_[127.0, np.full(99, 0.3)],
    "lone": np.array([-1.5]),
    "heavy tails": np.random.default_rng(3).standard_t(2, size=260),
}


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("kind", INPUTS)
def test_the_expected_value_is_exact(name: str, kind: str) -> None:
    values = INPUTS[kind].astype(np.float32)
    assert deviations(lambda x, seed: through(x, name, seed), values, 1500) < 5


@pytest.mark.parametrize(("name", "dimensions"), [("q2", 2), ("q1", 4)])
def test_the_nearest_point_without_the_correction_of_its_length_would_be_seen(
    name: str, dimensions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    uncorrected = dict(tables.LENGTHS) | {dimensions: np.linspace(0, 1, tables.KNOTS + 1, dtype=np.float32)}
    monkeypatch.setattr(codebook, "LENGTHS", uncorrected)
    values = INPUTS["normal"].astype(np.float32)
    assert deviations(lambda x, seed: through(x, name, seed), values, 1500) > 20


@pytest.mark.parametrize("name", ["q8", "q4"])
def test_levels_without_their_shift_would_be_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Draws, "coarse", lambda self, count: np.full(count, 0.5, np.float32))
    values = INPUTS["normal"].astype(np.float32)
    errors = np.stack([through(values, name, seed) - values for seed in range(5)])
    assert (errors == errors[0]).all()
    assert errors.any()


def directions(dimensions: int, count: int) -> npt.NDArray[np.float64]:
    """Unit vectors that cover the circle or the sphere in four dimensions evenly (a Kronecker sequence, Hopf's map)."""
    if dimensions == 2:
        angle = (np.arange(count) + 0.5) / count * 2 * np.pi
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)
    root = 1.2207440846057596  # of x⁴ = x + 1
    u, v, w = ((0.5 + np.arange(1, count + 1) * root**-power) % 1 for power in (1, 2, 3))
    near, far, first, second = np.sqrt(1 - u), np.sqrt(u), 2 * np.pi * v, 2 * np.pi * w
    half = np.stack([near * np.sin(first), near * np.cos(first), far * np.sin(second), far * np.cos(second)], axis=1)
    return np.concatenate([half, -half])


@pytest.mark.parametrize(("dimensions", "count", "tolerance"), [(2, 20_011, 1e-4), (4, 1 << 18, 3e-4)])
def test_averaged_over_all_rotations_every_length_comes_out(dimensions: int, count: int, tolerance: float) -> None:
    points = np.array(tables.POINTS[dimensions])
    along = directions(dimensions, count) @ points.T
    half = (points**2).sum(axis=1) / 2
    for knot, length in enumerate(tables.LENGTHS[dimensions]):
        nearest = (along * length - half).argmax(axis=1)
        assert along[np.arange(len(along)), nearest].mean() == pytest.approx(knot / tables.KNOTS, abs=tolerance)


@pytest.mark.parametrize("dimensions", [2, 4])
def test_rotations_are_orthogonal_and_turn_everywhere(dimensions: int) -> None:
    matrices = np.array([codebook.rotation(dimensions, Draws(seed, ROUNDING)) for seed in range(2000)])
    products = matrices @ matrices.transpose(0, 2, 1)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(dimensions), products.shape), atol=1e-12)
    # Each entry has mean 0 and variance 1/D where all rotations are equally likely.
    assert np.abs(matrices.mean(axis=0)).max() < 5 / np.sqrt(2000 * dimensions)
    np.testing.assert_allclose((matrices**2).mean(axis=0), 1 / dimensions, atol=0.05)
    determinants = np.linalg.det(matrices)
    assert (np.abs(np.mean(determinants)) < 0.1) == (dimensions == 2), "half of those in the plane are reflections"


@pytest.mark.parametrize("name", QUANTISED)
def test_errors_of_many_clients_average_out(name: str) -> None:
    """With a shared rotation: the squared error of the mean falls as one over the number of clients."""
    values = np.random.default_rng(5).normal(size=300).astype(np.float32)
    errors = np.stack([through(values, name, seed).astype(np.float64) - values for seed in range(1280)])
    alone = (errors**2).sum(axis=1).mean()
    together = (errors.reshape(20, 64, -1).mean(axis=1) ** 2).sum(axis=1).mean()
    assert together == pytest.approx(alone / 64, rel=0.2)


@pytest.mark.parametrize("name", codec.CODECS)
def test_the_bytes_follow_from_the_seed_alone(name: str) -> None:
    values = np.random.default_rng(0).normal(size=100).astype(np.float32)
    specs = (TensorSpec("t", (100,)),)
    data = [codec.encode(ClientUpdate((values,), 1, 1), specs, MODEL, name, seed) for seed in (7, 7, 8, 9)]
    assert data[0] == data[1]
    assert len({one[36:-4] for one in data}) == (1 if name == "f32" else 3)


@pytest.mark.parametrize("name", codec.CODECS)
def test_an_update_is_written_with_little_memory_and_the_same_bytes(name: str) -> None:
    sizes = (500_000, 1, 65_536, 70_001)
    specs = tuple(TensorSpec(f"t{index}", (size,)) for index, size in enumerate(sizes))
    rng = np.random.default_rng(0)
    delta = tuple(rng.normal(size=size).astype(np.float32) for size in sizes)
    header = codec.UpdateHeader(codec.codec_named(name).number, MODEL, 3, 5, 11, {"loss": 0.5})

    class Sink:
        def __init__(self) -> None:
            self.pieces: list[bytes] = []

        def write(self, piece: bytes) -> int:
            self.pieces.append(piece)
            return len(piece)

    sink = Sink()

    def tensors() -> Iterator[FloatArray]:
        yield from delta

    codec.encode(ClientUpdate(delta, 5, 3, {"loss": 0.5}), specs, MODEL, name, 11)
    tracemalloc.start()
    try:
        size = codec.write_update(sink, header, tensors())  # type: ignore[arg-type]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    data = b"".join(sink.pieces)
    assert data == codec.encode(ClientUpdate(delta, 5, 3, {"loss": 0.5}), specs, MODEL, name, 11)
    assert size == len(data) == codec.encoded_size(specs, name, ["loss"])
    assert peak - len(data) < 2 * 4 * max(sizes)
