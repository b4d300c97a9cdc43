"""Keras' side of the comparisons: its batches, and that every model learns from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

import models
from export.reference import KerasTrainer, synthetic_batch
from models import ClientOptimizer, ModelSpec

pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")

OUTPUTS = {"shakespeare_lstm": 258, "word_lstm": 10_000}
RATES = {"shakespeare_lstm": 1.0, "word_lstm": 5.0, "cifar_cnn": 0.02}
BATCH = {"shakespeare_lstm": 2, "word_lstm": 2}


def _rng() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(0))


@pytest.mark.parametrize("name", models.names())
def test_each_model_learns_a_batch(name: str) -> None:
    spec = models.get(name)
    trainer = KerasTrainer(spec, models.initial_weights(spec, 0))
    x, y = synthetic_batch(spec, OUTPUTS.get(name, 10), BATCH.get(name, 8), _rng())
    losses = [trainer.step(x, y, RATES.get(name, 0.1)) for _ in range(12)]
    assert losses[0] > 0.5 * np.log(OUTPUTS.get(name, 10))  # nothing is known at first
    assert losses[-1] < 0.9 * losses[0]
    assert all(np.isfinite(weight).all() for weight in trainer.get_weights())


def _sequence_spec(features: tf.TensorSpec, label: tf.TensorSpec, loss: str) -> ModelSpec:
    return replace(models.get("digits_mlp"), input=features, label=label, loss=loss)


def test_labels_are_what_the_loss_takes() -> None:
    numbers = tf.TensorSpec((None, 20), tf.float32)
    x, y = synthetic_batch(
        _sequence_spec(numbers, tf.TensorSpec((None, 4), tf.float32), "categorical_crossentropy"), 4, 6, _rng()
    )
    assert x.dtype == y.dtype == np.float32
    assert (x.shape, y.shape) == ((6, 20), (6, 4))
    np.testing.assert_array_equal(np.sort(y, axis=1), np.eye(4)[[3] * 6])

    _, y = synthetic_batch(
        _sequence_spec(numbers, tf.TensorSpec((None,), tf.int32), "binary_crossentropy"), 1, 9, _rng()
    )
    assert set(y.tolist()) == {0, 1}

    _, y = synthetic_batch(_sequence_spec(numbers, tf.TensorSpec((None, 2), tf.float32), "huber"), 2, 9, _rng())
    assert y.shape == (9, 2)
    assert ((y >= 0) & (y < 1)).all()


def test_a_sequence_s_labels_are_its_next_symbols() -> None:
    symbols = tf.TensorSpec((None, 7), tf.int32)
    x, y = synthetic_batch(_sequence_spec(symbols, symbols, "sparse_categorical_crossentropy"), 5, 3, _rng())
    assert x.dtype == y.dtype == np.int32
    assert set(x.ravel().tolist()) <= set(range(5))
    np.testing.assert_array_equal(y, (x + 1) % 5)


def test_the_optimizer_s_state_can_be_read_set_and_reset() -> None:
    spec = replace(models.get("digits_mlp"), optimizer=ClientOptimizer("momentum"))
    weights = models.initial_weights(spec, 0)
    trainer = KerasTrainer(spec, weights)
    x, y = synthetic_batch(spec, 10, 8, _rng())

    def step() -> bytes:
        trainer.set_weights(weights)
        trainer.step(x, y, 0.1)
        return b"".join(weight.tobytes() for weight in trainer.get_weights())

    first = step()
    slots = trainer.get_slots()
    second = step()
    assert second != first  # the velocity goes on
    trainer.set_slots(slots)
    assert step() == second
    trainer.reset_optimizer()
    assert step() == first
