"""What the codec is measured against is right itself: EDEN, and the other quantisers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks import eden
from benchmarks.codec import Updates
from benchmarks.deltas import COHORT, Federation, load_task, real_deltas
from benchmarks.quantisers import kept, lossy, stochastic_levels, top_k
from benchmarks.result import Result
from benchmarks.turns import Local
from device_runtime.bundle import Bundle
from device_runtime.codec import codec_named, values_of
from device_runtime.tensors import FloatArray, TensorSpec
from tff_sim import datasets
from tff_sim.errors import DatasetError

NORMAL: FloatArray = np.random.default_rng(0).standard_normal(70_000).astype(np.float32)

# Squared errors of a normal value after Max 1960, table I, for 2, 4 and 16 levels; of 256, Lloyd's asymptotic one.
DISTORTIONS = {1: 0.3634, 2: 0.1175, 4: 0.009497, 8: 4.12e-5}


@pytest.mark.parametrize(("bits", "distortion"), DISTORTIONS.items())
def test_eden_s_centroids_are_those_of_max(bits: int, distortion: float) -> None:
    levels = eden.centroids(bits).astype(np.float64)
    assert levels.shape == (2**bits,)
    np.testing.assert_allclose(levels, -levels[::-1], atol=1e-6)
    grid = np.linspace(-9, 9, 1_000_001)
    density = np.exp(-grid * grid / 2)
    nearest = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, grid)]
    assert np.average((grid - nearest) ** 2, weights=density) == pytest.approx(distortion, rel=2e-3)


@pytest.mark.parametrize(("bits", "distortion"), DISTORTIONS.items())
def test_eden_s_error_is_the_paper_s(bits: int, distortion: float) -> None:
    """Unbiased, it is D / (1 − D) of the vector's square."""
    errors = [float(((eden.round_trip(NORMAL, bits, seed) - NORMAL) ** 2).mean()) for seed in range(3)]
    assert np.mean(errors) == pytest.approx(distortion / (1 - distortion) * (NORMAL**2).mean(), rel=0.03)


def test_eden_is_unbiased_over_the_clients_rotations_and_not_under_a_shared_one() -> None:
    values = np.abs(NORMAL[:300])
    errors = np.stack([eden.round_trip(values, 1, seed) - values for seed in range(2000)])
    alone = float((errors**2).sum(axis=1).mean())
    assert float((errors.mean(axis=0) ** 2).sum()) == pytest.approx(alone / 2000, rel=0.3)
    same = eden.round_trip(values, 1, 1, shared=7)
    assert (same == eden.round_trip(values, 1, 2, shared=7)).all()


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e10])
def test_eden_takes_any_scale(scale: float) -> None:
    values = NORMAL[:100] * np.float32(scale)
    assert np.abs(eden.round_trip(values, 8, 1) - values).max() <= 0.05 * scale


def test_eden_s_bytes() -> None:
    assert eden.encoded_size(70_001, 1) == 8751 + 2 * 4


def test_stochastic_levels_have_the_least_error() -> None:
    """Moving any of the inner levels of two bits makes it larger."""
    levels = stochastic_levels(2).astype(np.float64)
    np.testing.assert_allclose(levels, -levels[::-1], atol=1e-3)
    grid = np.linspace(levels[0], levels[-1], 100_001)[1:-1]

    def error(tried: npt.NDArray[np.float64]) -> float:
        above = np.searchsorted(tried, grid)
        cost = (grid - tried[above - 1]) * (tried[above] - grid)
        return float(np.average(cost, weights=np.exp(-grid * grid / 2)))

    least = error(levels)
    for place in (1, 2):
        for step in (-0.05, 0.05):
            assert error(levels + step * (np.arange(4) == place)) > least


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_quantisers_are_unbiased_but_for_those_that_are_not(bits: int) -> None:
    values = NORMAL[:600]
    for name, round_trip in lossy(bits).items():
        errors = np.stack([round_trip(values, client, 1) - values for client in range(400)])
        alone = float((errors**2).sum(axis=1).mean())
        mean = float((errors.mean(axis=0) ** 2).sum())
        if name.startswith(("EDEN's levels", "top-k")):
            assert mean > alone / 2, name
        else:
            assert mean == pytest.approx(alone / 400, rel=0.5), name


def test_top_k_has_the_codec_s_bytes() -> None:
    for bits in (1, 2):
        count = kept(70_000, bits)
        bits_each = 17.5 + np.log2(70_000 / count)
        assert count * bits_each == pytest.approx(8 * codec_named(f"q{bits}").size(70_000), rel=2e-3)
        read = top_k(NORMAL, bits)
        assert np.count_nonzero(read) == count
        assert np.abs(NORMAL[read == 0]).max() <= np.abs(NORMAL[read != 0]).min()
        np.testing.assert_allclose(read[read != 0], NORMAL[read != 0], rtol=1e-3)


def test_the_error_of_the_mean() -> None:
    deltas = np.array([[3, 4], [0, 5]], np.float32)
    updates = Updates(deltas, (TensorSpec("t", (2,)),), "0" * 32, "two")
    assert updates.error_of_mean(np.array([1.5, 4.5], np.float32)) == 0
    assert updates.error_of_mean(np.array([1.5, 5.5], np.float32)) == pytest.approx(1 / 25)


def test_deltas_are_those_of_federated_averaging(digits_bundle: Bundle) -> None:
    """Of the digits as they are, here: the task only deals them."""
    task = load_task(None, 20)
    assert {examples.x.shape[1:] for examples in task.clients.values()} == {(28, 28, 1)}
    assert task.title == "20 clients × 71 embedded digits enlarged to 28×28"
    small = {name: type(examples)(examples.x[:, 2:26:3, 2:26:3], examples.y) for name, examples in task.clients.items()}
    digits = datasets.load("digits")
    whole = np.sort(np.concatenate([examples.x for examples in small.values()]).sum(axis=(1, 2, 3)))
    np.testing.assert_allclose(whole, np.sort(digits.train.x.sum(axis=(1, 2, 3))))
    federation = Federation(digits_bundle, type(task)(small, digits.test, ""))
    before = federation.evaluate()
    said: list[str] = []
    deltas = real_deltas(federation, COHORT, said.append)
    assert deltas.shape == (COHORT, values_of(digits_bundle.manifest.tensors))
    assert federation.rounds == 3
    assert federation.evaluate().loss < before.loss
    assert said[-1] == "training 10 clients"


def test_without_its_files_mnist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="none"):
        load_task(tmp_path / "none")


def test_functions_take_turns() -> None:
    calls: list[int] = []
    seconds = Local(lambda: calls.append(1)).turn(3)
    assert len(seconds) == len(calls) == 3
    assert min(seconds) >= 0


def test_a_result_has_a_note_where_there_is_one() -> None:
    result = Result("a", 1.0, "ms", "b", 2.0)
    assert "note" not in result.to_json()
    assert Result("a", 1.0, "ms", "b", 2.0, "c").to_json() == result.to_json() | {"note": "c"}
