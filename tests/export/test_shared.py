"""Functions that a model calls many times: emitted once, and gradients pass through each call as in TensorFlow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from export.lowering.products import computed
from export.recurrent import trace_model
from export.replay import Replay, trace

X = tf.TensorSpec((None, 3), tf.float32)


@pytest.fixture
def weights() -> list[tf.Variable]:
    rng = np.random.default_rng(0)
    return [tf.Variable(rng.standard_normal((3, 3)), dtype=tf.float32) for _ in range(2)]


@tf.function(autograph=False)
def _step(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    return tf.tanh(tf.matmul(x, w)) + x


@tf.function(autograph=False)
def _twice(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    return _step(_step(x, w), w)


def _replayed(
    function: Callable[[tf.Tensor], tf.Tensor], weights: list[tf.Variable], shared: bool = True
) -> tuple[Any, dict[str, int]]:
    """Result and gradients as a concrete function, and how many operators of each type it has outside of calls."""
    graph = trace(function, [X])

    def body(x: tf.Tensor) -> Any:
        replay = Replay(graph, (x,), weights, shared=shared)
        return replay.outputs[0], _gradients(replay, weights)

    concrete = tf.function(body, autograph=False).get_concrete_function(X)
    return concrete, Counter(op.type for op in concrete.graph.get_operations())


def _gradients(replay: Replay, weights: list[tf.Variable]) -> list[tf.Tensor]:
    found = replay.gradients(weights, tf.ones_like(replay.outputs[0]))
    return [
        tf.zeros_like(weight) if gradient is None else computed(gradient)
        for weight, gradient in zip(weights, found, strict=True)
    ]


def _assert_as_in_tensorflow(concrete: Any, function: Callable[[tf.Tensor], tf.Tensor], weights: Any) -> None:
    x = tf.constant(np.random.default_rng(1).standard_normal((5, 3)), tf.float32)
    with tf.GradientTape() as tape:
        expected = function(x)
    result, gradients = concrete(x)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    wanted = tape.gradient(expected, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    for got, want in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_a_function_is_emitted_once_and_its_gradient_is_one_product(weights: list[tf.Variable]) -> None:
    def function(x: tf.Tensor) -> tf.Tensor:
        for _ in range(4):
            x = _step(x, tf.convert_to_tensor(weights[0]))
        return x

    concrete, types = _replayed(function, weights)
    assert types["PartitionedCall"] == 2 * 4
    assert types["Tanh"] == 0
    assert types["MatMul"] == 1  # the gradient, of all calls at once
    _assert_as_in_tensorflow(concrete, function, weights)


def test_calls_can_be_written_out(weights: list[tf.Variable]) -> None:
    def function(x: tf.Tensor) -> tf.Tensor:
        return _step(_step(x, weights[0]), weights[0])

    concrete, types = _replayed(function, weights, shared=False)
    assert types["PartitionedCall"] == 0
    assert types["Tanh"] == 2
    _assert_as_in_tensorflow(concrete, function, weights)


def test_what_is_the_same_in_some_calls_need_not_be_in_others(weights: list[tf.Variable]) -> None:
    """`_twice` calls with one weight both times; elsewhere the same function gets another."""

    def function(x: tf.Tensor) -> tf.Tensor:
        y = _twice(x, weights[0])
        return _step(y, weights[1]) + _twice(y, weights[1])

    concrete, _ = _replayed(function, weights)
    _assert_as_in_tensorflow(concrete, function, weights)


def test_what_no_weight_reaches_is_no_part_of_the_gradient(weights: list[tf.Variable]) -> None:
    def function(x: tf.Tensor) -> tf.Tensor:
        y = _twice(_twice(x, tf.eye(3)), tf.eye(3))
        return _step(_step(y, weights[0]), weights[0])

    concrete, _ = _replayed(function, weights)
    _assert_as_in_tensorflow(concrete, function, weights)


@pytest.mark.parametrize("layer", [tf.keras.layers.LSTM, tf.keras.layers.GRU, tf.keras.layers.SimpleRNN])
def test_a_recurrent_step_costs_two_operators(layer: Any) -> None:
    """A call of the step and one of its way back, beside what takes steps apart and joins them."""

    def operators(steps: int) -> int:
        model = tf.keras.Sequential([tf.keras.layers.Input((steps, 2)), layer(4)])
        graph = trace_model(model, lambda x: model(x, training=True), [tf.TensorSpec((None, steps, 2))])

        def body(x: tf.Tensor) -> Any:
            replay = Replay(graph, (x,), model.trainable_variables)
            return _gradients(replay, model.trainable_variables)

        concrete = tf.function(body, autograph=False).get_concrete_function(tf.TensorSpec((None, steps, 2)))
        return len(concrete.graph.get_operations())

    more = operators(14) - operators(4)
    assert more <= 10 * 4
