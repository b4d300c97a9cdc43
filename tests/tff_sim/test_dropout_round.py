"""A simulated round with dropout: the masks are those of the protocol's step seeds."""

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
from device_runtime.work import ClientWork, client_seed, step_seeds
from models.training import client_step
from tff_sim import build_fed_avg, client_dataset

pytestmark = [
    pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning"),
    pytest.mark.usefixtures("tff_worker"),
]

WORK = ClientWork(epochs=2, batch_size=4, learning_rate=0.1, seed=3)


def _build() -> Any:
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            layers.Input((6,)),
            layers.Dropout(0.2),
            layers.Dense(20, "relu", name="hidden"),
            layers.Dropout(0.5),
            layers.Dense(3, name="logits"),
        ]
    )


SPEC = replace(models.get("digits_mlp"), build=_build, input=tf.TensorSpec((None, 6), tf.float32))


@pytest.fixture(scope="module")
def examples() -> Examples:
    rng = np.random.default_rng(0)
    return Examples(rng.standard_normal((11, 6)).astype(np.float32), rng.integers(0, 3, 11, np.int32))


def _step_by_step(examples: Examples, seed: int, seeds: list[int]) -> Weights:
    model = models.seeded_model(SPEC, 0)
    remaining = iter(seeds)
    for epoch in range(WORK.epochs):
        for batch in batch_indices(len(examples), WORK.batch_size, seed, epoch):
            x, y = tf.constant(examples.x[batch]), tf.constant(examples.y[batch])
            client_step(SPEC, model, (), x, y, WORK.learning_rate, seed=next(remaining))
    return tuple(model.get_weights())


def _largest_difference(a: Weights, b: Weights) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


def test_a_round_takes_the_step_seeds_in_turn(examples: Examples) -> None:
    process = build_fed_avg(SPEC, WORK, models.initial_weights(SPEC, 0))
    seed = client_seed(WORK.seed, 1, "one")

    def a_round() -> Weights:
        output = process.next(process.initialize(), [client_dataset(examples, WORK, seed)])
        return tuple(process.get_model_weights(output.state).trainable)

    got = a_round()
    assert [w.tobytes() for w in got] == [w.tobytes() for w in a_round()]
    seeds = step_seeds(seed, 6).tolist()  # three batches an epoch
    assert _largest_difference(got, _step_by_step(examples, seed, seeds)) <= 1e-5
    assert _largest_difference(got, _step_by_step(examples, seed, seeds[:1] * 6)) > 1e-3


def test_a_random_layer_without_a_seed_is_refused(examples: Examples) -> None:
    def build() -> Any:
        layers = tf.keras.layers
        return tf.keras.Sequential(
            [layers.Input((6,)), layers.GaussianNoise(1.0, name="noise"), layers.Dense(3, name="logits")]
        )

    spec = replace(SPEC, build=build)
    with pytest.raises(ValueError, match=r"^layer 'noise': GaussianNoise draws random numbers that a device can't"):
        build_fed_avg(spec, WORK, models.initial_weights(spec, 0))
