"""Philox and what codecs draw from it, in TensorFlow and in numpy: the same to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from device_runtime.codec.randomness import OVERLAP, ROTATION, ROUNDING, Draws
from device_runtime.work import SEED_BITS
from tff_sim.encoding.philox import words
from tff_sim.encoding.randomness import coarse, direction, signs

seeds = st.integers(0, 2**SEED_BITS - 1)


@settings(max_examples=100, deadline=None)
@given(seeds, st.sampled_from([ROUNDING, ROTATION, OVERLAP]), st.integers(0, 300), st.integers(1, 300))
@example(0, ROUNDING, 0, 1)
@example(2**SEED_BITS - 1, OVERLAP, 3, 4)
def test_words_are_those_of_numpy(seed: int, stream: int, start: int, count: int) -> None:
    draws = Draws(seed, stream)
    draws.words(start)
    np.testing.assert_array_equal(words(tf.constant(seed, tf.int64), stream, count, start), draws.words(count))


def test_words_far_into_a_stream_are_those_of_numpy() -> None:
    start = 4 * (2**40 + 2**33) + 1
    generator = np.random.Philox(key=np.array([7, ROUNDING], np.uint64))
    generator.advance(start // 4)
    np.testing.assert_array_equal(words(7, ROUNDING, 9, start), generator.random_raw(10)[1:])


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 3000))
def test_signs_and_coarse_numbers_are_those_of_a_device(seed: int, count: int) -> None:
    np.testing.assert_array_equal(coarse(seed, count), Draws(seed, ROUNDING).coarse(count))
    np.testing.assert_array_equal(signs(seed, ROTATION, count), Draws(seed, ROTATION).signs(count))


@pytest.mark.parametrize("dimensions", [2, 4])
def test_directions_are_those_of_a_device(dimensions: int) -> None:
    """Among 200 seeds there are some whose first points are all outside of the ball."""

    @tf.function(autograph=False)
    def two(seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        first, start = direction(seed, dimensions, 0)
        second, start = direction(seed, dimensions, start)
        return first, second, words(seed, ROUNDING, 1, start)

    longest = 0
    for seed in range(200):
        draws = Draws(seed, ROUNDING)
        first, second, after = two(tf.constant(seed, tf.int64))
        assert tuple(first.numpy()) == draws.direction(dimensions)
        assert tuple(second.numpy()) == draws.direction(dimensions)
        assert after.numpy() == draws.words(1)
        everything = Draws(seed, ROUNDING).words(dimensions * 1000)
        longest = max(longest, int(np.flatnonzero(everything == after.numpy())[0]))
    assert longest > 4 * dimensions
