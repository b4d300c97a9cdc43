"""The server's optimisers: their parameters, their state as bytes, and steps that are refused.

That their steps are the simulation's is in `tests/tff_sim/test_fleet_server.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aggregation_server.aggregation.server_optimizer import FED_AVG, SERVER_OPTIMIZERS, ServerOptimizer
from aggregation_server.aggregation.state import ServerState
from device_runtime.errors import InputError, IntegrityError
from device_runtime.tensors import TensorSpec, Weights
from device_runtime.weights import dump_weights
from tff_sim.algorithms import algorithm as simulated

SPECS = (TensorSpec("kernel", (40, 30)), TensorSpec("bias", (7,)), TensorSpec("scale", ()))
ALL: tuple[dict[str, Any], ...] = (
    {},
    {"name": "sgd", "learning_rate": 0.3},
    {"name": "momentum"},
    {"name": "momentum", "learning_rate": 0.7, "momentum": 0.0},
    {"name": "fedadagrad"},
    {"name": "fedadagrad", "learning_rate": 0.1, "beta_1": 0.5, "tau": 0.2},
    {"name": "fedadam"},
    {"name": "fedadam", "learning_rate": 0.5, "beta_1": 0.0, "beta_2": 0.5, "tau": 0.1},
    {"name": "fedyogi"},
    {"name": "fedyogi", "learning_rate": 0.03, "beta_1": 0.3, "beta_2": 0.999, "tau": 1e-8},
)


def tensors(rng: np.random.Generator, scale: float) -> Weights:
    return tuple(np.asarray(scale * rng.normal(size=spec.shape), np.float32) for spec in SPECS)  # type: ignore[arg-type]


def start() -> Weights:
    return tensors(np.random.default_rng(0), 0.1)


def test_names_defaults_and_what_is_said_of_them_are_the_simulation_s() -> None:
    assert SERVER_OPTIMIZERS == simulated.SERVER_OPTIMIZERS
    for fields in ALL:
        assert ServerOptimizer(**fields).to_json() == simulated.ServerOptimizer(**fields).to_json()


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "adam"},
        {"momentum": 0.9},
        {"name": "fedadam", "momentum": 0.9},
        {"name": "fedadagrad", "beta_2": 0.9},
        {"learning_rate": 0.0},
        {"learning_rate": np.inf},
        {"learning_rate": "fast"},
        {"name": "momentum", "momentum": 1.0},
        {"name": "fedyogi", "beta_1": -0.1},
        {"name": "fedyogi", "tau": 0},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_in_the_simulation_s_words(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError) as expected:
        simulated.ServerOptimizer(**fields)
    with pytest.raises(InputError) as caught:
        ServerOptimizer(**fields)
    assert str(caught.value) == str(expected.value)
    assert str(caught.value).startswith("--server-")


def test_a_step_whose_moments_would_not_be_finite_is_refused() -> None:
    """1e25 has no finite square in float32: FedAdam would stand still for ever."""
    state = ServerState.of(3, start(), SPECS)
    delta = tuple(np.full(np.shape(w), 1e25, np.float32) for w in start())
    for name in ("fedadagrad", "fedadam", "fedyogi"):
        with pytest.raises(IntegrityError) as caught:
            state.after(delta, SPECS, ServerOptimizer(name))
        assert str(caught.value) == "the server's optimiser: tensor 'v/kernel' holds values that are not finite"


def test_a_step_too_far_for_float32_is_refused() -> None:
    state = ServerState.of(3, start(), SPECS)
    delta = tuple(np.full(np.shape(w), 3e37, np.float32) for w in start())
    for optimizer in (ServerOptimizer(learning_rate=100.0), ServerOptimizer("momentum", learning_rate=100.0)):
        with pytest.raises(IntegrityError) as caught:
            state.after(delta, SPECS, optimizer)
        assert str(caught.value) == "new weights: tensor 'kernel' holds values that are not finite"


def test_the_state_of_another_optimiser_is_an_error() -> None:
    adam, data = ServerOptimizer("fedadam"), dump_weights(start(), SPECS)
    moments = adam.dump(adam.initial(SPECS), SPECS)
    with pytest.raises(IntegrityError, match="stored optimiser: these are the weights of another model"):
        ServerState.load(1, data, SPECS, ServerOptimizer("momentum"), moments)
    with pytest.raises(
        IntegrityError, match=rf"stored optimiser: {len(moments)} bytes of another optimiser, for sgd has"
    ):
        ServerState.load(1, data, SPECS, FED_AVG, moments)
    with pytest.raises(IntegrityError, match="stored optimiser: not a safetensors file"):
        ServerState.load(1, data, SPECS, adam, moments[:100])


def test_what_is_stored_is_as_large_as_the_moments() -> None:
    sizes = {
        name: len(ServerOptimizer(name).dump(ServerOptimizer(name).initial(SPECS), SPECS)) for name in SERVER_OPTIMIZERS
    }
    model = 4 * sum(spec.size for spec in SPECS)
    assert sizes["sgd"] == 0
    assert model < sizes["momentum"] < model + 300
    for name in ("fedadagrad", "fedadam", "fedyogi"):
        assert 2 * model < sizes[name] < 2 * model + 600
    (first, *_), *_ = (ServerOptimizer("fedyogi", tau=0.5).initial(SPECS)[3:],)
    assert (first == 0.25).all()
