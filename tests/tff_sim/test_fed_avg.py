"""A round of Federated Averaging against TFF's own, against plain TensorFlow, and against itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
import tensorflow_federated as tff

import models
from device_runtime.batching import batch_indices, epoch_order
from device_runtime.errors import InputError
from device_runtime.examples import Examples
from device_runtime.tensors import Weights
from device_runtime.work import ClientWork, client_seed, step_seeds
from models.training import client_step
from tests.tff_sim.stock import stock_fed_avg, stock_model, stock_round
from tff_sim import Algorithm, ServerOptimizer, build_fed_avg, client_dataset
from tff_sim.algorithms.fed_avg import build_server_update
from tff_sim.algorithms.schedules import Schedule, work_of
from tff_sim.engines.engine import ClientTask, EngineRound, ProcessEngine
from tff_sim.plan import honest, random_cohorts
from tff_sim.simulation import always, simulate

pytestmark = [
    pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning"),
    pytest.mark.usefixtures("tff_worker"),
]

SPEC = models.get("digits_mlp")
WORK = ClientWork(epochs=2, batch_size=5, learning_rate=0.2, seed=11)
# Five full batches, a last batch of two, fewer examples than a batch, and a single one.
SIZES = {"full": 25, "uneven": 12, "few": 3, "single": 1}


@pytest.fixture(scope="module")
def clients() -> dict[str, Examples]:
    rng = np.random.default_rng(0)
    return {
        # labels of a client's own: with equal distributions, weighted and plain mean would be alike
        name: Examples(
            rng.random((size, 8, 8, 1), np.float32), ((rng.integers(0, 3, size) + 3 * index) % 10).astype(np.int32)
        )
        for index, (name, size) in enumerate(SIZES.items())
    }


@pytest.fixture(scope="module")
def initial() -> Weights:
    return models.initial_weights(SPEC, 0)


@pytest.fixture(scope="module")
def process(initial: Weights) -> Any:
    return build_fed_avg(SPEC, WORK, initial)


@pytest.fixture(scope="module")
def trained_in_eager(clients: dict[str, Examples], initial: Weights) -> Callable[..., tuple[Weights, float]]:
    """`trained_in_eager(name, seed, work)`: one client's weights after its work, and its mean loss."""

    def train(name: str, seed: int, work: ClientWork) -> tuple[Weights, float]:
        examples = clients[name]
        model = models.seeded_model(SPEC, 99)
        model.set_weights(list(initial))
        losses = [
            len(batch)
            * float(
                client_step(
                    SPEC, model, (), tf.constant(examples.x[batch]), tf.constant(examples.y[batch]),
                    work.learning_rate, work.proximal, initial,
                )
            )
            for epoch in range(work.epochs)
            for batch in batch_indices(len(examples), work.batch_size, seed, epoch)
        ]  # fmt: skip
        return tuple(model.get_weights()), sum(losses) / (work.epochs * len(examples))

    return train


def _round(process: Any, clients: dict[str, Examples], names: list[str], work: ClientWork) -> tuple[Weights, Any]:
    """Weights and metrics after one round; each client has the seed that round 1 of the work gives it."""
    data = [client_dataset(clients[name], work, client_seed(work.seed, 1, name)) for name in names]
    output = process.next(process.initialize(), data)
    return tuple(process.get_model_weights(output.state).trainable), output.metrics["client_work"]


def _largest_difference(a: Weights, b: Weights) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


def _mean(values: list[Weights], weights: list[int]) -> Weights:
    return tuple(np.average(np.stack(tensors), axis=0, weights=weights) for tensors in zip(*values, strict=True))


def test_a_round_is_that_of_stock_tff(process: Any, clients: dict[str, Examples], initial: Weights) -> None:
    got, metrics = _round(process, clients, list(clients), WORK)
    want, _ = stock_round(stock_fed_avg(WORK), clients, WORK, initial)
    assert _largest_difference(want, initial) > 0.05  # the round did move the weights
    assert _largest_difference(got, want) <= 1e-5
    assert int(metrics["examples"]) == sum(SIZES.values())


def test_a_round_is_the_mean_weighted_by_examples(
    process: Any,
    clients: dict[str, Examples],
    trained_in_eager: Callable[..., tuple[Weights, float]],
) -> None:
    got, metrics = _round(process, clients, list(clients), WORK)
    results = [trained_in_eager(name, client_seed(WORK.seed, 1, name), WORK) for name in clients]
    weights = [weights for weights, _ in results]
    assert _largest_difference(got, _mean(weights, list(SIZES.values()))) <= 1e-5
    assert _largest_difference(got, _mean(weights, [1] * len(SIZES))) > 1e-2  # a plain mean is something else

    losses = [loss for _, loss in results]
    assert float(metrics["loss"]) == pytest.approx(np.average(losses, weights=list(SIZES.values())), rel=1e-5)
    assert float(metrics["loss"]) != pytest.approx(np.mean(losses), rel=1e-2)
    assert int(metrics["examples"]) == sum(SIZES.values())
    assert int(metrics["clients"]) == len(SIZES)


def test_the_order_of_the_batches_counts(process: Any, clients: dict[str, Examples]) -> None:
    one, _ = _round(process, clients, ["full"], WORK)
    other, _ = _round(process, clients, ["full"], replace(WORK, seed=WORK.seed + 1))
    assert _largest_difference(one, other) > 1e-4


def test_fed_sgd_is_one_step_along_the_mean_gradient_of_all_examples(
    clients: dict[str, Examples], initial: Weights
) -> None:
    work = ClientWork(epochs=1, batch_size=None, learning_rate=0.5, seed=3)  # FedSGD: E = 1, B = ∞
    got, _ = _round(build_fed_avg(SPEC, work, initial), clients, list(clients), work)
    model = models.seeded_model(SPEC, 99)
    model.set_weights(list(initial))
    x = np.concatenate([examples.x for examples in clients.values()])
    y = np.concatenate([examples.y for examples in clients.values()])
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x)))
    gradients = tape.gradient(loss, model.trainable_variables)
    want = tuple(w - 0.5 * g.numpy() for w, g in zip(initial, gradients, strict=True))
    assert _largest_difference(want, initial) > 1e-2
    assert _largest_difference(got, want) <= 1e-5


def test_a_proximal_term_holds_the_weights_back(
    clients: dict[str, Examples], initial: Weights, trained_in_eager: Callable[..., tuple[Weights, float]]
) -> None:
    work = replace(WORK, proximal=2.0)
    got, _ = _round(build_fed_avg(SPEC, work, initial), clients, ["full"], work)
    seed = client_seed(work.seed, 1, "full")
    want, _ = trained_in_eager("full", seed, work)
    free, _ = trained_in_eager("full", seed, WORK)
    assert _largest_difference(got, want) <= 1e-5
    assert _largest_difference(got, free) > 1e-2

    def distance(weights: Weights) -> float:
        return sum(float(((a - b) ** 2).sum()) for a, b in zip(weights, initial, strict=True))

    assert distance(got) < distance(free)


def test_tff_s_own_proximal_term_is_this_one_with_the_other_sign(
    clients: dict[str, Examples], initial: Weights
) -> None:
    class Turned(float):
        def __mul__(self, other: Any) -> Any:
            return tf.multiply(-float(self), other)

    work = replace(WORK, proximal=0.5)
    got, _ = _round(build_fed_avg(SPEC, work, initial), clients, list(clients), work)

    def differs(strength: float) -> float:
        sgdm = tff.learning.optimizers.build_sgdm
        stock = tff.learning.algorithms.build_weighted_fed_prox(
            stock_model, strength, client_optimizer_fn=sgdm(WORK.learning_rate), server_optimizer_fn=sgdm(1.0)
        )
        return _largest_difference(got, stock_round(stock, clients, WORK, initial)[0])

    assert differs(Turned(0.5)) <= 1e-5
    assert differs(0.5) > 1e-2


def _two_rounds(process: Any, clients: dict[str, Examples], seed: int) -> list[EngineRound]:
    plan, work = random_cohorts(list(clients), 0.5, seed), always(replace(WORK, seed=seed))
    return [done.result for done in simulate(ProcessEngine(process), always(clients), work, plan, (1, 2))]


def test_the_same_seed_is_the_same_run_to_the_bit(process: Any, clients: dict[str, Examples], initial: Weights) -> None:
    first = _two_rounds(process, clients, 5)
    again = _two_rounds(build_fed_avg(SPEC, WORK, initial), clients, 5)
    other = _two_rounds(process, clients, 6)
    for one, two in zip(first, again, strict=True):
        assert [w.tobytes() for w in one.weights] == [w.tobytes() for w in two.weights]
        assert replace(one, weights=(), state=None) == replace(two, weights=(), state=None)
    assert _largest_difference(first[-1].weights, other[-1].weights) > 1e-4


def test_rounds_are_counted_and_go_on_from_each_other(process: Any, clients: dict[str, Examples]) -> None:
    plans = {1: honest(["few"]), 2: honest(["few", "single"])}
    done = list(simulate(ProcessEngine(process), always(clients), always(WORK), plans.__getitem__, (1, 2)))
    assert [one.number for one in done] == [1, 2]
    assert [one.plan for one in done] == [plans[1], plans[2]]
    rounds = [one.result for one in done]
    assert [(one.clients, one.examples) for one in rounds] == [(1, 3), (2, 4)]
    first, _ = _round(process, clients, ["few"], WORK)
    assert _largest_difference(rounds[0].weights, first) == 0
    assert _largest_difference(rounds[1].weights, first) > 1e-3
    assert all(weight.dtype == np.float32 for one in rounds for weight in one.weights)
    (again,) = simulate(ProcessEngine(process), always(clients), always(WORK), plans.__getitem__, [2], rounds[0].state)
    assert _largest_difference(again.result.weights, rounds[1].weights) == 0


def test_it_is_a_learning_process_of_tff(process: Any, clients: dict[str, Examples], initial: Weights) -> None:
    assert isinstance(process, tff.learning.templates.LearningProcess)
    state = process.initialize()
    assert _largest_difference(tuple(process.get_model_weights(state).trainable), initial) == 0

    other = models.initial_weights(SPEC, 1)
    state = process.set_model_weights(state, tff.learning.models.ModelWeights(trainable=list(other), non_trainable=[]))
    assert _largest_difference(tuple(process.get_model_weights(state).trainable), other) == 0
    output = process.next(state, [client_dataset(clients["single"], replace(WORK, epochs=1), 0)])
    moved = _largest_difference(tuple(process.get_model_weights(output.state).trainable), other)
    assert 0 < moved < 0.5  # one step from the weights that were set


def test_client_data_carry_the_order_of_the_protocol(clients: dict[str, Examples]) -> None:
    (element,) = client_dataset(clients["uneven"], replace(WORK, epochs=3), 42, -1.0).as_numpy_iterator()
    assert list(element) == ["x", "y", "order", "seeds", "learning_rate", "factor", "seed"]
    assert (element["learning_rate"], element["factor"], element["seed"]) == (np.float32(0.2), -1, 42)
    np.testing.assert_array_equal(element["x"], clients["uneven"].x)
    np.testing.assert_array_equal(element["y"], clients["uneven"].y)
    order: npt.NDArray[np.int32] = element["order"]
    assert order.shape == (3, 12)
    assert order.dtype == np.int32
    for epoch in range(3):
        np.testing.assert_array_equal(order[epoch], epoch_order(12, 42, epoch))
    np.testing.assert_array_equal(element["seeds"], step_seeds(42, 36))


def test_a_factor_multiplies_the_delta(process: Any, clients: dict[str, Examples], initial: Weights) -> None:
    def moved(factor: float) -> Weights:
        data = [client_dataset(clients["few"], WORK, 3, factor)]
        output = process.next(process.initialize(), data)
        weights = process.get_model_weights(output.state).trainable
        return tuple(after - before for after, before in zip(weights, initial, strict=True))

    one, flipped, tenfold = moved(1.0), moved(-1.0), moved(10.0)
    assert _largest_difference(tuple(-w for w in flipped), one) < 1e-6
    assert _largest_difference(tenfold, tuple(10 * w for w in one)) < 1e-5


def _engine_round(process: Any, tasks: list[ClientTask]) -> EngineRound:
    engine = ProcessEngine(process)
    return engine.round(engine.initialize(), WORK, tasks)


def test_a_client_that_is_not_finite_is_counted_and_changes_nothing(process: Any, clients: dict[str, Examples]) -> None:
    tasks = [ClientTask(name, clients[name], seed) for seed, name in enumerate(("uneven", "few"))]
    spoilt = Examples(np.full((4, 8, 8, 1), np.inf, np.float32), np.zeros(4, np.int32))
    honest_alone = _engine_round(process, tasks)
    corrupt = ClientTask("full", clients["full"], 9, factor=np.nan)  # its loss is finite
    beside = _engine_round(process, [tasks[0], ClientTask("spoilt", spoilt, 8), tasks[1], corrupt])
    assert _largest_difference(beside.weights, honest_alone.weights) == 0
    assert (beside.clients, beside.examples) == (honest_alone.clients, honest_alone.examples) == (2, 15)
    assert honest_alone.counts == {"non_finite": 0, "zeroed": 0, "clipped": 0, "no_step": 0}
    assert beside.counts == {"non_finite": 2, "zeroed": 0, "clipped": 0, "no_step": 0}
    # the mean loss is that of the three clients that have one
    with_loss = _engine_round(process, [*tasks, replace(corrupt, factor=1.0)])
    assert beside.train_loss == pytest.approx(with_loss.train_loss, rel=1e-5)


def test_a_round_in_which_nobody_is_finite_leaves_the_model(process: Any, initial: Weights) -> None:
    spoilt = Examples(np.full((4, 8, 8, 1), np.nan, np.float32), np.zeros(4, np.int32))
    done = _engine_round(process, [ClientTask("one", spoilt, 1), ClientTask("two", spoilt, 2)])
    assert _largest_difference(done.weights, initial) == 0
    assert (done.clients, done.examples, np.isnan(done.train_loss)) == (0, 0, True)
    assert done.counts == {"non_finite": 2, "zeroed": 0, "clipped": 0, "no_step": 1}


def test_an_algorithm_is_what_the_server_does(clients: dict[str, Examples], initial: Weights) -> None:
    algorithm = Algorithm(ServerOptimizer("momentum", learning_rate=0.5), weighting="uniform", clip_norm=1e-3)
    done = _engine_round(
        build_fed_avg(SPEC, WORK, initial, algorithm), [ClientTask(name, clients[name], 1) for name in ("few", "full")]
    )
    assert done.counts["clipped"] == 2
    moved = np.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in zip(done.weights, initial, strict=True)))
    assert 0.5e-3 / 2 < moved <= 0.5e-3 * 1.01  # two deltas of length 1e-3, half their mean


def test_a_schedule_changes_the_learning_rate_of_a_round(process: Any, clients: dict[str, Examples]) -> None:
    work = work_of(WORK, Schedule("step", decay=1e-6, decay_rounds=1))
    plan = always(honest(["few"]))
    first, second = (done.result for done in simulate(ProcessEngine(process), always(clients), work, plan, (1, 2)))
    plainly = list(simulate(ProcessEngine(process), always(clients), always(WORK), plan, (1, 2)))
    assert _largest_difference(first.weights, plainly[0].result.weights) == 0
    assert 0 < _largest_difference(second.weights, first.weights) < 1e-5
    assert _largest_difference(plainly[1].result.weights, first.weights) > 1e-2


def test_deltas_from_elsewhere_go_through_the_same_server(
    process: Any, clients: dict[str, Examples], initial: Weights
) -> None:
    algorithm = Algorithm(ServerOptimizer("fedadam"), clip_norm=1.0)
    whole, half = build_fed_avg(SPEC, WORK, initial, algorithm), build_server_update(WORK, initial, algorithm)
    names, state = ["few", "uneven"], whole.initialize()
    for seed in (1, 2):  # the second goes on from the other's state, and the other way round
        before = tuple(state.global_model_weights.trainable)
        data = [client_dataset(clients[name], WORK, seed) for name in names]
        together = whole.next(state, data)
        start = process.set_model_weights(
            process.initialize(), tff.learning.models.ModelWeights(list(before), non_trainable=[])
        )
        results = []
        for name, one in zip(names, data, strict=True):
            alone = process.get_model_weights(process.next(start, [one]).state).trainable
            delta = [w - after for w, after in zip(before, alone, strict=True)]
            results.append(tff.learning.templates.ClientResult(delta, np.float32(len(clients[name]))))
        apart = half.next(state, results)
        got, want = apart.state.global_model_weights.trainable, together.state.global_model_weights.trainable
        assert _largest_difference(tuple(got), tuple(want)) < 1e-5
        assert _largest_difference(tuple(want), before) > 1e-3
        assert apart.metrics["aggregator"] == together.metrics["aggregator"]
        state = apart.state


def test_its_metrics_are_in_the_places_of_tff(process: Any, clients: dict[str, Examples], initial: Weights) -> None:
    ours = process.next(process.initialize(), [client_dataset(clients["few"], WORK, 0)]).metrics
    _, stock = stock_round(stock_fed_avg(WORK), {"few": clients["few"]}, WORK, initial)
    assert list(ours) == list(stock) == ["distributor", "client_work", "aggregator", "finalizer"]
    assert set(stock["finalizer"]) <= set(ours["finalizer"])


def test_a_client_without_examples_is_refused() -> None:
    nothing = Examples(np.zeros((0, 8, 8, 1), np.float32), np.zeros(0, np.int32))
    with pytest.raises(InputError) as caught:
        client_dataset(nothing, WORK, 0)
    assert str(caught.value) == ("a client without examples can't take part in a round; leave it out of the cohort")


@pytest.mark.parametrize("labels", [11, 13])
def test_a_client_needs_as_many_labels_as_examples(clients: dict[str, Examples], labels: int) -> None:
    # TensorFlow would train with more of them, each beside another example's features.
    unequal = Examples(clients["uneven"].x, np.zeros(labels, np.int32))
    with pytest.raises(InputError) as caught:
        client_dataset(unequal, WORK, 0)
    assert str(caught.value) == f"a client has 12 rows of x and {labels} of y; expected as many of both"
