"""Whole rounds of `build_fed_avg` with a codec against devices' encoding and a server's step: the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow_federated as tff

import models
from aggregation_server.aggregation.partial_sum import PartialSum
from aggregation_server.aggregation.state import ServerState
from device_runtime.codec import encode, read_update
from device_runtime.examples import Examples
from device_runtime.tensors import TensorSpec, Weights
from device_runtime.update import ClientUpdate
from device_runtime.work import ClientWork, client_seed
from tff_sim import Algorithm, build_fed_avg, client_dataset
from tff_sim.algorithms.client_work import build_client_work

pytestmark = [
    pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning"),
    pytest.mark.usefixtures("tff_worker"),
]

SPEC = models.get("digits_mlp")
WORK = ClientWork(epochs=1, batch_size=5, learning_rate=0.2, seed=3, codec="q4")
NAMES = ["a", "b", "c", "d"]
MODEL_ID = "0" * 32


@pytest.fixture(scope="module")
def initial() -> Weights:
    return models.initial_weights(SPEC, 0)


@pytest.fixture(scope="module")
def clients() -> dict[str, Examples]:
    rng = np.random.default_rng(0)
    return {
        name: Examples(rng.random((size, 8, 8, 1), np.float32), rng.integers(0, 10, size).astype(np.int32))
        for name, size in zip(NAMES, (25, 12, 3, 1), strict=True)
    }


def _data(clients: dict[str, Examples], round_number: int, factors: dict[str, float] | None = None) -> list[Any]:
    return [
        client_dataset(clients[name], WORK, client_seed(WORK.seed, round_number, name), (factors or {}).get(name, 1.0))
        for name in NAMES
    ]


@pytest.fixture(scope="module")
def train(clients: dict[str, Examples], initial: Weights) -> Any:
    """`train(weights, round_number)`: the clients' deltas in the protocol's sign, by the same client work."""
    weights_type = tff.to_type(
        tff.learning.models.ModelWeights([tff.TensorType(np.float32, w.shape) for w in initial], [])
    )
    client_work = build_client_work(SPEC, weights_type, WORK)

    def run(weights: Weights, round_number: int) -> list[Weights]:
        model = tff.learning.models.ModelWeights(list(weights), [])
        output = client_work.next((), [model] * len(NAMES), _data(clients, round_number))
        return [tuple(-np.asarray(tensor) for tensor in result.update["delta"]) for result in output.result]

    return run


def _encoded(deltas: list[Weights], clients: dict[str, Examples], round_number: int) -> list[Any]:
    specs = _specs(deltas[0])
    updates = []
    for name, delta in zip(NAMES, deltas, strict=True):
        update = ClientUpdate(delta, len(clients[name]), round_number, {})
        data = encode(update, specs, MODEL_ID, WORK.codec, client_seed(WORK.seed, round_number, name))
        updates.append(read_update(data, specs, MODEL_ID))
    return updates


def _specs(weights: Weights) -> list[TensorSpec]:
    return [TensorSpec(str(number), tensor.shape) for number, tensor in enumerate(weights)]


def test_two_rounds_are_those_of_a_fleet(train: Any, clients: dict[str, Examples], initial: Weights) -> None:
    process = build_fed_avg(SPEC, WORK, initial)
    state, server = process.initialize(), ServerState.of(1, initial, _specs(initial))
    for round_number in (1, 2):
        aggregate = PartialSum(_specs(initial))
        for update in _encoded(train(server.weights, round_number), clients, round_number):
            aggregate.add(update)
        server = server.after(aggregate.result(), _specs(initial))

        output = process.next(state, _data(clients, round_number))
        state = output.state
        weights = process.get_model_weights(state).trainable
        assert [np.asarray(w).tobytes() for w in weights] == [w.tobytes() for w in server.weights]
        measured = output.metrics["aggregator"]
        assert {name: int(measured[name]) for name in measured if name != "upload_bytes"} == {
            "clients": 4, "examples": 41, "non_finite": 0, "zeroed": 0, "clipped": 0,
        }  # fmt: skip


def test_a_delta_that_is_not_finite_counts_for_nothing(clients: dict[str, Examples], initial: Weights) -> None:
    process = build_fed_avg(SPEC, WORK, initial)
    output = process.next(process.initialize(), _data(clients, 1, {"b": np.nan}))
    assert int(output.metrics["aggregator"]["non_finite"]) == 1
    assert int(output.metrics["aggregator"]["examples"]) == 29
    assert all(np.isfinite(w).all() for w in process.get_model_weights(output.state).trainable)
    all_broken = process.next(output.state, _data(clients, 2, dict.fromkeys(NAMES, np.nan)))
    assert int(all_broken.metrics["finalizer"]["update_non_finite"]) == 1
    before, after = (process.get_model_weights(done.state).trainable for done in (output, all_broken))
    assert [w.tobytes() for w in before] == [w.tobytes() for w in after]


def test_other_aggregations_see_what_was_decoded(train: Any, clients: dict[str, Examples], initial: Weights) -> None:
    process = build_fed_avg(SPEC, WORK, initial, Algorithm(aggregator="median"))
    state, weights = process.initialize(), initial
    for round_number in (1, 2):
        decoded = [update.values() for update in _encoded(train(weights, round_number), clients, round_number)]
        output = process.next(state, _data(clients, round_number))
        state = output.state
        got = process.get_model_weights(state).trainable
        change = np.concatenate([(np.asarray(w) - before).reshape(-1) for w, before in zip(got, weights, strict=True)])
        np.testing.assert_allclose(change, np.median(np.stack(decoded), axis=0), rtol=0, atol=1e-6)
        assert np.abs(change).max() > 1e-2
        weights = tuple(np.asarray(w) for w in got)
