"""The rotation of a round: it keeps lengths, is undone exactly, and does not depend on how tensors come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.codec.rotation import CHUNK, chunks, rotated, undo
from device_runtime.tensors import FloatArray

SIZES = (1, 2, 3, 5, 31, 33, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 5, 3 * CHUNK - 1)


def rotate(pieces: list[FloatArray], round_number: int = 1) -> FloatArray:
    parts = list(rotated(chunks(pieces), round_number))
    return np.concatenate(parts)


@pytest.mark.parametrize("size", SIZES)
def test_it_keeps_the_length_and_is_undone(size: int) -> None:
    values = np.random.default_rng(size).normal(size=size).astype(np.float32)
    turned = rotate([values.copy()])
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(values), rel=1e-5)
    undo(turned, 1)
    np.testing.assert_allclose(turned, values, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_every_value_is_spread(size: int) -> None:
    """A lone value in any place, the last among them, is spread over its block."""
    block = min(CHUNK, 1 << (size.bit_length() - 1))
    for place in {0, size // 2, size - 1}:
        values = np.zeros(size, np.float32)
        values[place] = 1
        assert np.abs(rotate([values])).max() <= 6 / np.sqrt(block)


def test_it_is_the_hadamard_matrix_in_sylvester_s_order() -> None:
    matrix = np.array([[1.0]])
    for _ in range(3):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    values = np.arange(8, dtype=np.float32)
    signs = rotate([np.eye(8, dtype=np.float32)[0]]) * np.sqrt(8)
    turned = rotate([values.copy()]) * np.sqrt(8)
    # The signs are those that the round draws: recovered from the unit vectors.
    drawn = [float(np.sign(rotate([np.eye(8, dtype=np.float32)[k]])[0])) for k in range(8)]
    np.testing.assert_allclose(turned, matrix @ (values * drawn), atol=1e-5)
    np.testing.assert_allclose(np.abs(signs), 1, atol=1e-6)


@pytest.mark.parametrize("round_number", [1, 2, 77, 2**32 - 1])
def test_every_round_has_its_own(round_number: int) -> None:
    values = np.ones(1000, np.float32)
    turned = rotate([values.copy()], round_number)
    assert (turned == rotate([values.copy()], round_number)).all()
    assert not np.allclose(turned, rotate([values.copy()], round_number - 1))


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_the_cut_into_tensors_does_not_matter(sizes: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=sum(sizes)).astype(np.float32)
    pieces = np.split(values.copy(), np.cumsum(sizes)[:-1])
    whole = list(rotated(chunks([values.copy()]), 1))
    parts = list(rotated(chunks(pieces), 1))
    assert [part.tobytes() for part in parts] == [part.tobytes() for part in whole]
