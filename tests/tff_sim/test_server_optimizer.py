"""The server's optimisers against Reddi et al. 2021, Algorithms 1 and 2, written down in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from device_runtime.tensors import Weights
from device_runtime.work import ClientWork
from tff_sim.algorithms.algorithm import Algorithm, ServerOptimizer
from tff_sim.algorithms.fed_avg import build_server_update
from tff_sim.algorithms.server_optimizer import build_server_optimizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning"),
    pytest.mark.usefixtures("tff_worker"),
]

Expected = tuple[npt.NDArray[np.float64], ...]
START: Weights = (np.array([[1.0, -2.0], [0.5, 3.0]], np.float32), np.array([0.0], np.float32))
# Small and large beside τ and beside the rounds before, and of both signs: each branch of Yogi's sign is taken.
DELTAS = [
    (np.array([[0.5, -0.01], [2.0, 1e-4]], np.float32), np.array([-0.3], np.float32)),
    (np.array([[0.1, -0.5], [-2.5, 1e-4]], np.float32), np.array([-0.9], np.float32)),
    (np.array([[-0.2, 0.0], [0.3, -4.0]], np.float32), np.array([0.05], np.float32)),
]


def _sgd(learning_rate: float, momentum: float = 0.0) -> list[Expected]:
    """FedAvg, and FedAvgM: v ← μ·v + Δ, x ← x + η·v."""
    x = [w.astype(np.float64) for w in START]
    v = [np.zeros_like(w) for w in x]
    after = []
    for deltas in DELTAS:
        v = [momentum * old + delta for old, delta in zip(v, deltas, strict=True)]
        x = [w + learning_rate * step for w, step in zip(x, v, strict=True)]
        after.append(tuple(x))
    return after


def _adaptive(
    second: Callable[[Any, Any, float], Any], learning_rate: float, beta_1: float, beta_2: float, tau: float
) -> list[Expected]:
    """Algorithm 2: m_{-1} = 0 and v_{-1} = τ²; x_{t+1} = x_t + η·m_t/(√v_t + τ)."""
    x = [w.astype(np.float64) for w in START]
    m = [np.zeros_like(w) for w in x]
    v = [np.full_like(w, tau**2) for w in x]
    after = []
    for deltas in DELTAS:
        m = [beta_1 * old + (1 - beta_1) * delta for old, delta in zip(m, deltas, strict=True)]
        v = [second(old, delta.astype(np.float64) ** 2, beta_2) for old, delta in zip(v, deltas, strict=True)]
        x = [w + learning_rate * one / (np.sqrt(two) + tau) for w, one, two in zip(x, m, v, strict=True)]
        after.append(tuple(x))
    return after


def _adagrad(v: Any, square: Any, beta_2: float) -> Any:
    return v + square


def _adam(v: Any, square: Any, beta_2: float) -> Any:
    return beta_2 * v + (1 - beta_2) * square


def _yogi(v: Any, square: Any, beta_2: float) -> Any:
    return v - (1 - beta_2) * square * np.sign(v - square)


@pytest.mark.parametrize(
    ("optimizer", "want"),
    [
        (ServerOptimizer(), _sgd(1.0)),
        (ServerOptimizer("sgd", learning_rate=0.5), _sgd(0.5)),
        (ServerOptimizer("momentum", learning_rate=0.3), _sgd(0.3, 0.9)),
        (ServerOptimizer("momentum", momentum=0.0), _sgd(1.0)),
        (ServerOptimizer("fedadagrad"), _adaptive(_adagrad, 0.01, 0.0, 0.0, 1e-3)),
        (ServerOptimizer("fedadagrad", 0.1, beta_1=0.5, tau=0.2), _adaptive(_adagrad, 0.1, 0.5, 0.0, 0.2)),
        (ServerOptimizer("fedadam"), _adaptive(_adam, 0.01, 0.9, 0.99, 1e-3)),
        (ServerOptimizer("fedadam", 0.5, None, 0.0, 0.5, 0.1), _adaptive(_adam, 0.5, 0.0, 0.5, 0.1)),
        (ServerOptimizer("fedyogi"), _adaptive(_yogi, 0.01, 0.9, 0.99, 1e-3)),
        (ServerOptimizer("fedyogi", 0.5, None, 0.3, 0.5, 0.1), _adaptive(_yogi, 0.5, 0.3, 0.5, 0.1)),
    ],
    ids=lambda case: case.name if isinstance(case, ServerOptimizer) else "",
)
def test_three_rounds_are_those_of_the_paper(optimizer: ServerOptimizer, want: list[Expected]) -> None:
    process = build_server_update(ClientWork(), START, Algorithm(optimizer))
    state = process.initialize()
    for deltas, expected in zip(DELTAS, want, strict=True):
        pseudo_gradient = [-delta for delta in deltas]
        state, metrics = process.next(state, [tff.learning.templates.ClientResult(pseudo_gradient, np.float32(7))])
        assert metrics["finalizer"]["update_non_finite"] == 0
        for value, w in zip(state.global_model_weights.trainable, expected, strict=True):
            np.testing.assert_allclose(value, w, rtol=3e-6, atol=1e-6)
    moved = [np.abs(w - start).max() for w, start in zip(want[-1], START, strict=True)]
    assert min(moved) > 5e-3


def test_a_step_that_would_not_be_finite_is_not_taken() -> None:
    """1e25 has no finite square in float32: FedAdam's second moment would stay infinite, and the model where it is."""
    process = build_server_update(ClientWork(), START, Algorithm(ServerOptimizer("fedadam")))
    result = tff.learning.templates.ClientResult
    before, _ = process.next(process.initialize(), [result(list(DELTAS[0]), np.float32(1))])
    after, metrics = process.next(before, [result([w * 0 + 1e25 for w in START], np.float32(1))])
    assert metrics["finalizer"]["update_non_finite"] == 1
    assert metrics["aggregator"]["clients"] == 1
    tf.nest.map_structure(np.testing.assert_array_equal, after.finalizer, before.finalizer)
    for value, w in zip(after.global_model_weights.trainable, before.global_model_weights.trainable, strict=True):
        np.testing.assert_array_equal(value, w)


def test_a_step_too_far_for_float32_is_not_taken() -> None:
    process = build_server_update(ClientWork(), START, Algorithm(ServerOptimizer(learning_rate=100.0)))
    huge = tff.learning.templates.ClientResult([w * 0 + 3e37 for w in START], np.float32(1))
    state, metrics = process.next(process.initialize(), [huge])
    assert metrics["finalizer"]["update_non_finite"] == 1
    for value, w in zip(state.global_model_weights.trainable, START, strict=True):
        np.testing.assert_array_equal(value, w)


def test_it_is_an_optimizer_of_tff_with_its_hyperparameters_in_the_state() -> None:
    rule = build_server_optimizer(ServerOptimizer("fedyogi", tau=0.5))
    assert isinstance(rule, tff.learning.optimizers.Optimizer)
    state = rule.initialize([tf.TensorSpec((2,), tf.float32)])
    assert dict(rule.get_hparams(state)) == {"learning_rate": 0.01, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.5}
    np.testing.assert_allclose(state["v"][0], [0.25, 0.25])
    changed = rule.set_hparams(state, rule.get_hparams(state) | {"learning_rate": 0.02})
    weights, gradients = [tf.constant([1.0, 1.0])], [tf.constant([1.0, -1.0])]
    (_, (one,)), (_, (twice,)) = rule.next(state, weights, gradients), rule.next(changed, weights, gradients)
    np.testing.assert_allclose(twice - 1, 2 * (one - 1), rtol=1e-4)
