"""The round's rotation in TensorFlow and on a device: the same to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from device_runtime.codec.rotation import chunks, rotated, undo
from tff_sim.encoding import rotation

SIZES = [1, 2, 3, 5, 31, 32, 33, 1000, 65535, 65536, 65537, 131071, 200_000]


@pytest.mark.parametrize("size", SIZES)
def test_it_is_that_of_a_device_there_and_back(size: int) -> None:
    rng = np.random.default_rng(size)
    values = (rng.standard_normal(size) * np.exp2(rng.integers(-30, 30, size))).astype(np.float32)
    round_number = tf.constant(size % 97 + 1, tf.int64)
    want = np.concatenate(list(rotated(chunks([values.copy()]), int(round_number))))
    there = rotation.rotated(tf.constant(values), round_number)
    np.testing.assert_array_equal(there.numpy().view(np.uint32), want.view(np.uint32))
    undo(want, int(round_number))
    back = rotation.undone(there, round_number)
    np.testing.assert_array_equal(back.numpy().view(np.uint32), want.view(np.uint32))


def test_a_round_has_its_own() -> None:
    values = tf.ones(1000)
    one, other = (rotation.rotated(values, tf.constant(number, tf.int64)).numpy() for number in (1, 2))
    assert (one != other).mean() > 0.5
