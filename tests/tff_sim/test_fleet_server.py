"""What the fleet's server computes is what the simulation computes, to the bit: optimisers, median and trimmed mean.

Neither package imports the other; `tests/tff_sim/encoding` holds the mean of encoded updates together likewise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from aggregation_server.aggregation.robust import Aggregation, aggregate_round, median, trimmed_mean
from aggregation_server.aggregation.server_optimizer import ServerOptimizer
from aggregation_server.aggregation.state import ServerState
from device_runtime import codec
from device_runtime.codec import EncodedUpdate
from device_runtime.tensors import TensorSpec, Weights
from device_runtime.update import ClientUpdate
from device_runtime.work import ClientWork
from tff_sim.algorithms import algorithm as simulated
from tff_sim.algorithms import robust
from tff_sim.algorithms.fed_avg import build_server_update

pytestmark = [
    pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning"),
    pytest.mark.usefixtures("tff_worker"),
]

SPECS = (TensorSpec("kernel", (40, 30)), TensorSpec("bias", (7,)), TensorSpec("scale", ()))
MODEL = "ab" * 16
OPTIMIZERS: tuple[dict[str, Any], ...] = (
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


@pytest.mark.parametrize("fields", OPTIMIZERS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_five_rounds_are_the_simulation_s_to_the_bit(fields: dict[str, Any]) -> None:
    optimizer = ServerOptimizer(**fields)
    process = build_server_update(ClientWork(), start(), simulated.Algorithm(simulated.ServerOptimizer(**fields)))
    state, server = process.initialize(), ServerState.of(0, start(), SPECS)
    rng = np.random.default_rng(1)
    for scale in (0.01, 1.0, 1e-4, 30.0, 0.1):
        delta = tensors(rng, scale)
        delta[0][::7] = 0
        result = tff.learning.templates.ClientResult([-tensor for tensor in delta], np.float32(1))
        state, metrics = process.next(state, [result])
        assert metrics["finalizer"]["update_non_finite"] == 0
        server = server.after(delta, SPECS, optimizer)
        for got, want in zip(server.weights, state.global_model_weights.trainable, strict=True):
            np.testing.assert_array_equal(got, want)
        moments = optimizer.dump(server.moments, SPECS)
        server = ServerState.load(server.round_number, server.data, SPECS, optimizer, moments)  # changes nothing
    moved = [np.abs(w - before).max() for w, before in zip(server.weights, start(), strict=True)]
    assert min(moved) > 1e-3


def updates(count: int, name: str) -> list[EncodedUpdate]:
    rng, made = np.random.default_rng(count), []
    for number in range(count):
        update = ClientUpdate(tensors(rng, 1.0), int(rng.integers(1, 1000)), 1)
        made.append(codec.read_update(codec.encode(update, SPECS, MODEL, name, number), SPECS, MODEL))
    return made


@pytest.mark.parametrize("name", codec.CODECS)
@pytest.mark.parametrize("count", [1, 2, 5, 24])
def test_with_a_shard_a_client_it_is_the_simulation_s_to_the_bit(name: str, count: int) -> None:
    made = updates(count, name)

    def combined(aggregation: Aggregation) -> bytes:
        result, _ = aggregate_round(made, lambda update: update, SPECS, aggregation, (5, 1))
        return b"".join(tensor.tobytes() for tensor in result)

    values = tf.constant(np.stack([update.values() for update in made]))
    for shards in (count, 10_000):
        got = combined(Aggregation("median", shards))
        assert got == robust.median(values).numpy().tobytes()
        for trim in (0.0, 0.1, 0.29, 0.4):
            got = combined(Aggregation("trimmed_mean", shards, trim))
            assert got == robust.trimmed_mean(values, trim).numpy().tobytes()


@pytest.mark.parametrize("count", [*range(1, 40), 100, 101, 1000])
def test_functions_of_many_values_are_the_simulation_s_to_the_bit(count: int) -> None:
    """1,003 coordinates: no multiple of what TensorFlow adds at a time."""
    values = np.random.default_rng(count).normal(size=(count, 1003)).astype(np.float32)
    values[:, 0] = 0.1  # ties
    assert median(values).tobytes() == robust.median(tf.constant(values)).numpy().tobytes()
    for percent in (0, 10, 29, 49):
        want = robust.trimmed_mean(tf.constant(values), percent / 100).numpy()
        assert trimmed_mean(values, percent / 100).tobytes() == want.tobytes()
