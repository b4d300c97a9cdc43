"""Rounds with batch normalisation and with optimisers that have a state, against plain Keras."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import models
from device_runtime.batching import batch_indices
from device_runtime.examples import Examples
from device_runtime.tensors import Weights
from device_runtime.work import ClientWork, client_seed
from models import ClientOptimizer
from tff_sim import build_fed_avg, client_dataset
from tff_sim.experiments.evaluation import Evaluator

pytestmark = [
    pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning"),
    pytest.mark.usefixtures("tff_worker"),
]

WORK = ClientWork(epochs=2, batch_size=4, learning_rate=0.05, seed=5)


def _build() -> Any:
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            layers.Input((6,)),
            layers.Dense(5, use_bias=False, name="hidden"),  # the normalisation would cancel it
            layers.BatchNormalization(momentum=0.9, name="norm"),
            layers.ReLU(),
            layers.Dense(3, name="logits"),
        ]
    )


def _spec(optimizer: ClientOptimizer) -> models.ModelSpec:
    return replace(
        models.get("digits_mlp"), build=_build, input=tf.TensorSpec((None, 6), tf.float32), optimizer=optimizer
    )


@pytest.fixture(scope="module")
def clients() -> dict[str, Examples]:
    rng = np.random.default_rng(0)
    return {
        name: Examples((rng.standard_normal((size, 6)) + size).astype(np.float32), rng.integers(0, 3, size, np.int32))
        for name, size in {"one": 11, "two": 4}.items()
    }


def _in_keras(spec: models.ModelSpec, optimizer: Any, examples: Examples, seed: int) -> Weights:
    """A client's weights and statistics after its work: Keras's layers, loss and optimiser, and a loop."""
    model = models.seeded_model(spec, 0)
    weights = model.trainable_variables
    loss_of = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for epoch in range(WORK.epochs):
        for batch in batch_indices(len(examples), WORK.batch_size, seed, epoch):
            with tf.GradientTape() as tape:
                loss = loss_of(examples.y[batch], model(examples.x[batch], training=True))
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
    norm = model.get_layer("norm")
    return tuple(v.numpy() for v in [*weights, norm.moving_mean, norm.moving_variance])


@pytest.mark.parametrize(
    ("ours", "keras"),
    [
        (ClientOptimizer(), lambda: tf.keras.optimizers.SGD(0.05)),
        (ClientOptimizer("momentum"), lambda: tf.keras.optimizers.SGD(0.05, momentum=0.9)),
        (
            ClientOptimizer("adam", epsilon=1e-3, clip_norm=0.5),
            lambda: tf.keras.optimizers.Adam(0.05, epsilon=1e-3, global_clipnorm=0.5),
        ),
    ],
    ids=lambda case: getattr(case, "name", ""),
)
def test_a_round_is_the_weighted_mean_of_what_keras_computes(
    ours: ClientOptimizer, keras: Any, clients: dict[str, Examples]
) -> None:
    spec = _spec(ours)
    initial = models.initial_weights(spec, 0)
    seeds = {name: client_seed(WORK.seed, 1, name) for name in clients}
    process = build_fed_avg(spec, WORK, initial)
    data = [client_dataset(examples, WORK, seeds[name]) for name, examples in clients.items()]
    output = process.next(process.initialize(), data)
    got = tuple(process.get_model_weights(output.state).trainable)

    # each client has an optimiser of its own: no state is carried from one to the next
    results = [_in_keras(spec, keras(), examples, seeds[name]) for name, examples in clients.items()]
    want = [np.average(np.stack(tensors), axis=0, weights=[11, 4]) for tensors in zip(*results, strict=True)]
    assert len(got) == len(want) == 7
    for value, expected, start in zip(got, want, initial, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=2e-5)
        assert np.abs(value - start).max() > 1e-4


def test_evaluation_takes_the_statistics_that_it_is_given(clients: dict[str, Examples]) -> None:
    spec = _spec(ClientOptimizer())
    evaluate = Evaluator(spec, clients["one"])
    weights = list(models.initial_weights(spec, 0))
    first = evaluate(tuple(weights)).loss
    weights[-1] = weights[-1] * 4
    assert evaluate(tuple(weights)).loss != pytest.approx(first, rel=1e-3)


def test_evaluation_of_sequences_counts_each_step() -> None:
    def build() -> Any:
        layers = tf.keras.layers
        return tf.keras.Sequential([layers.Input((4,), dtype=tf.int32), layers.Embedding(5, 5, name="logits")])

    symbols = tf.TensorSpec((None, 4), tf.int32)
    spec = replace(models.get("digits_mlp"), build=build, input=symbols, label=symbols)
    x = np.array([[0, 1, 2, 3], [3, 3, 4, 4]], np.int32)
    y = np.array([[0, 1, 0, 0], [0, 0, 4, 0]], np.int32)
    result = Evaluator(spec, Examples(x, y))((10 * np.eye(5, dtype=np.float32),))
    assert result.accuracy == pytest.approx(3 / 8)  # right where the label is the symbol itself
    assert result.loss == pytest.approx(5 / 8 * 10, rel=1e-3)
