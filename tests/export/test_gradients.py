"""Every registered gradient equals TensorFlow's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from export.errors import ExportError
from export.gradients import OVERRIDES, check_supported


def _gradients(function: Callable[..., Any], inputs: list[Any], override: bool) -> list[Any]:
    """Gradients of a weighted sum of the function's output by all inputs."""

    @tf.function
    def run(*tensors: Any) -> Any:
        names = OVERRIDES if override else {}
        with tf.compat.v1.get_default_graph().gradient_override_map(names):
            y = function(*tensors)
        shape = y.shape
        weights = tf.reshape(tf.sin(tf.range(np.prod(shape), dtype=tf.float32)), shape)
        return tf.gradients(y, list(tensors), grad_ys=weights)

    return [value.numpy() for value in run(*(tf.constant(value) for value in inputs))]


def _compare(function: Callable[..., Any], *inputs: Any) -> None:
    ours, theirs = (_gradients(function, list(inputs), override) for override in (True, False))
    for mine, reference in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-5, atol=1e-5)


def _random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5), (2, 2), (4, 3)])
def test_conv2d(kernel: tuple[int, int], padding: str, batch: int) -> None:
    x, w = _random(batch, 9, 8, 3), _random(*kernel, 3, 4, seed=1)
    _compare(lambda x, w: tf.nn.conv2d(x, w, 1, padding), x, w)


@pytest.mark.parametrize("rank", [2, 4])
def test_bias_add(rank: int) -> None:
    _compare(tf.nn.bias_add, _random(*[3, 4, 5, 6][:rank]), _random([3, 4, 5, 6][rank - 1]))


def test_relu_is_zero_at_zero() -> None:
    _compare(tf.nn.relu, np.array([[-1.0, -0.0, 0.0, 1e-30, 2.0]], np.float32))


@pytest.mark.parametrize("size", [(2, 2), (2, 4), (3, 2), (1, 1), (6, 8)])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_max_pool(size: tuple[int, int], padding: str) -> None:
    _compare(lambda x: tf.nn.max_pool2d(x, size, size, padding), _random(3, 6, 8, 5))


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_max_pool_gives_ties_to_the_first_maximum(levels: int) -> None:
    """With few distinct values most windows tie; with one, all do."""
    x = np.random.default_rng(0).integers(0, levels, (4, 6, 6, 3)).astype(np.float32)
    _compare(lambda x: tf.nn.max_pool2d(x, 2, 2, "VALID"), x)
    # The reference itself is what the docstring says: the first of equals takes all.
    gradient = _gradients(lambda x: tf.nn.max_pool2d(x, 2, 2, "VALID"), [np.ones((1, 2, 2, 1), np.float32)], True)[0]
    assert np.count_nonzero(gradient[0, :, :, 0].ravel()[1:]) == 0


@pytest.mark.parametrize(
    ("function", "shapes", "message"),
    [
        (
            lambda x, w: tf.nn.conv2d(x, w, 2, "SAME"),
            [(1, 8, 8, 2), (3, 3, 2, 2)],
            "Conv2D is supported with strides 1",
        ),
        (
            lambda x, w: tf.nn.conv2d(x, w, 1, "SAME", dilations=2),
            [(1, 8, 8, 2), (3, 3, 2, 2)],
            "Conv2D is supported with strides 1, dilation 1, groups 1",
        ),
        (lambda x: tf.nn.max_pool2d(x, 3, 2, "SAME"), [(1, 8, 8, 2)], "strides equal to the pool size"),
        (lambda x: tf.nn.max_pool2d(x, 3, 3, "SAME"), [(1, 8, 8, 2)], "on inputs that it divides"),
        (
            lambda x, b: tf.nn.bias_add(x, b, data_format="NCHW"),
            [(1, 2, 8, 8), (2,)],
            "BiasAdd with channels first; use data_format='channels_last'",
        ),
    ],
)
def test_a_form_that_is_not_covered_is_refused(
    function: Callable[..., Any], shapes: list[tuple[int, ...]], message: str
) -> None:
    graph = tf.Graph()
    with graph.as_default(), graph.gradient_override_map(OVERRIDES), tf.name_scope("my_layer"):
        inputs = [tf.compat.v1.placeholder(tf.float32, shape) for shape in shapes]
        y = function(*inputs)
        with pytest.raises(ExportError, match=message) as error:
            tf.gradients(y, inputs)
    assert "my_layer" in str(error.value)


def test_an_operator_without_builtin_gradient_is_named_with_its_layer() -> None:
    model = tf.keras.Sequential([tf.keras.layers.Input((4,)), tf.keras.layers.Dense(3, "softplus", name="soft")])
    graph = tf.Graph()
    with graph.as_default():
        logits = tf.keras.models.clone_model(model)(tf.compat.v1.placeholder(tf.float32, (None, 4)))
        with pytest.raises(ExportError, match="layer 'soft': no builtin gradient for the operator Softplus; supported"):
            check_supported(logits)
