"""What an algorithm does with deltas, in the processes that TFF's own builders make."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tensorflow_federated as tff

import models
from device_runtime.errors import InputError
from device_runtime.examples import Examples
from device_runtime.work import ClientWork, client_seed
from tests.tff_sim.stock import stock_fed_avg, stock_round
from tff_sim import Algorithm, AlgorithmFactory, ServerOptimizer, build_fed_avg, client_dataset

pytestmark = [
    pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning"),
    pytest.mark.usefixtures("tff_worker"),
]

SPEC = models.get("digits_mlp")
WORK = ClientWork(epochs=1, batch_size=5, learning_rate=0.2, seed=11)
ALGORITHMS = [
    Algorithm(aggregator="median"),
    Algorithm(aggregator="trimmed_mean", trim=0.3),
    Algorithm(weighting="uniform", clip_norm=0.1),
    Algorithm(zero_norm=1.0),
]


@pytest.fixture(scope="module")
def clients() -> dict[str, Examples]:
    """The last one's training is lost: TFF gives zeros of weight 0 for it, ours NaN."""
    rng = np.random.default_rng(0)
    made = {
        str(size): Examples(rng.random((size, 8, 8, 1), np.float32), rng.integers(0, 10, size).astype(np.int32))
        for size in (25, 5, 12, 40, 8)
    }
    return made | {"lost": _lost(made["5"])}


def _lost(examples: Examples) -> Examples:
    return Examples(np.full_like(examples.x, np.nan), examples.y)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=["median", "trimmed", "clipped", "zeroed"])
def test_a_round_of_tff_s_builder_is_that_of_ours(algorithm: Algorithm, clients: dict[str, Examples]) -> None:
    initial = models.initial_weights(SPEC, 0)
    got, metrics = stock_round(
        stock_fed_avg(WORK, model_aggregator=AlgorithmFactory(algorithm)), clients, WORK, initial
    )
    ours = build_fed_avg(SPEC, WORK, initial, algorithm)
    data = [client_dataset(examples, WORK, client_seed(WORK.seed, 1, name)) for name, examples in clients.items()]
    output = ours.next(ours.initialize(), data)
    want = ours.get_model_weights(output.state).trainable
    assert max(float(np.abs(a - b).max()) for a, b in zip(want, initial, strict=True)) > 1e-3
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    counts = {name: int(value) for name, value in metrics["aggregator"].items()}
    assert counts["non_finite"] == 1
    assert counts == {name: int(value) for name, value in output.metrics["aggregator"].items()}


def test_a_round_in_which_nobody_counts_leaves_the_model(clients: dict[str, Examples]) -> None:
    initial = models.initial_weights(SPEC, 0)
    process = stock_fed_avg(WORK, model_aggregator=AlgorithmFactory(ALGORITHMS[0]))
    weights, metrics = stock_round(process, {"a": clients["lost"], "b": clients["lost"]}, WORK, initial)
    assert int(metrics["aggregator"]["clients"]) == 0
    assert all(np.array_equal(a, b) for a, b in zip(weights, initial, strict=True))


def test_what_is_no_aggregation_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        AlgorithmFactory("median")  # type: ignore[arg-type]
    assert str(caught.value) == "expected an Algorithm, such as Algorithm(aggregator='median'), not 'median'"
    with pytest.raises(InputError) as caught:
        AlgorithmFactory(replace(ALGORITHMS[0], optimizer=ServerOptimizer("fedadam")))
    assert str(caught.value) == (
        "an aggregator has no optimizer: give 'fedadam' to TFF's builder, as"
        " server_optimizer_fn=build_server_optimizer(…)"
    )
    factory, number = AlgorithmFactory(ALGORITHMS[0]), tff.TensorType(np.float32)
    for values, weights, shown in [
        (tff.to_type([np.float32, np.int32]), number, "<float32,int32> and float32"),
        (tff.to_type([("a", np.float32)]), number, "<a=float32> and float32"),
        (number, number, "float32 and float32"),
        (tff.to_type([np.float32]), tff.TensorType(np.int32), "<float32> and int32"),
    ]:
        with pytest.raises(TypeError) as refused:
            factory.create(values, weights)
        assert str(refused.value) == f"expected a list of float32 tensors and weights of float32, not {shown}"
