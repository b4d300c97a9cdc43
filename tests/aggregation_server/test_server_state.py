"""The finalizer: w + mean delta, with an identity that follows from the bytes."""

from __future__ import annotations

import numpy as np
import pytest

from aggregation_server.aggregation.state import ServerState
from device_runtime.bundle import Bundle
from device_runtime.errors import IntegrityError
from device_runtime.tensors import TensorSpec, sha256
from device_runtime.weights import dump_weights, load_weights

SPECS = (TensorSpec("kernel", (3, 2)), TensorSpec("bias", (2,)))


def initial_state(bundle: Bundle) -> ServerState:
    return ServerState.load(0, dump_weights(bundle.initial_weights(), SPECS), SPECS)


def test_a_round_adds_the_mean_delta(bundle: Bundle) -> None:
    before = initial_state(bundle)
    after = before.after((np.full((3, 2), 0.5, np.float32), np.full(2, -1, np.float32)), SPECS)
    np.testing.assert_array_equal(after.weights[0], before.weights[0] + np.float32(0.5))
    np.testing.assert_array_equal(after.weights[1], before.weights[1] - 1)
    assert (before.round_number, after.round_number) == (0, 1)


def test_identity_is_the_hash_of_the_bytes_that_devices_download(bundle: Bundle) -> None:
    before = initial_state(bundle)
    after = before.after((np.ones((3, 2), np.float32), np.ones(2, np.float32)), SPECS)
    assert before.identity != after.identity == sha256(after.data)
    for tensor, loaded in zip(after.weights, load_weights(after.data, SPECS), strict=True):
        np.testing.assert_array_equal(tensor, loaded)


def test_weights_that_overflow_are_an_error(bundle: Bundle) -> None:
    largest = np.finfo(np.float32).max
    state = initial_state(bundle).after((np.full((3, 2), 0, np.float32), np.full(2, largest, np.float32)), SPECS)
    with pytest.raises(IntegrityError) as caught:
        state.after((np.full((3, 2), 0, np.float32), np.full(2, largest, np.float32)), SPECS)
    assert str(caught.value) == "new weights: tensor 'bias' holds values that are not finite"


def test_stored_bytes_of_another_model_are_an_error() -> None:
    with pytest.raises(IntegrityError, match="stored weights: not a safetensors file"):
        ServerState.load(0, b"1234", SPECS)
