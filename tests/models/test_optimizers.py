"""The client's optimisers against Keras's own, and their fields' checks."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from models.optimizers import ClientOptimizer

SHAPES = [(4, 3), (3,), (2, 5, 2)]
RATE = 0.03
Array = npt.NDArray[np.float32]


def _start() -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]


def _gradients(step: int) -> list[Array]:
    rng = np.random.default_rng(step + 1)
    # of very different sizes from step to step: some are clipped, some are not
    return [(10.0 ** (step % 3 - 1) * rng.standard_normal(shape)).astype(np.float32) for shape in SHAPES]


CASES: list[tuple[ClientOptimizer, Any]] = [
    (ClientOptimizer(), lambda: tf.keras.optimizers.SGD(RATE)),
    (ClientOptimizer("momentum"), lambda: tf.keras.optimizers.SGD(RATE, momentum=0.9)),
    (ClientOptimizer("momentum", momentum=0.5), lambda: tf.keras.optimizers.SGD(RATE, momentum=0.5)),
    (ClientOptimizer("adam"), lambda: tf.keras.optimizers.Adam(RATE)),
    (
        ClientOptimizer("adam", beta_1=0.8, beta_2=0.9, epsilon=0.1),
        lambda: tf.keras.optimizers.Adam(RATE, beta_1=0.8, beta_2=0.9, epsilon=0.1),
    ),
]


@pytest.mark.parametrize("clip_norm", [None, 1.5])
@pytest.mark.parametrize(("ours", "keras"), CASES, ids=lambda case: getattr(case, "name", ""))
def test_twenty_steps_are_keras_s(ours: ClientOptimizer, keras: Any, clip_norm: float | None) -> None:
    ours = ClientOptimizer(**(ours.to_json() | {"clip_norm": clip_norm}))
    reference = keras()
    weights, expected = ([tf.Variable(value) for value in _start()] for _ in range(2))
    slots = ours.make_slots(weights)
    step_function = tf.function(lambda *g: ours.apply(weights, ours.clip(g), slots, RATE))
    for step in range(20):
        gradients = [tf.constant(gradient) for gradient in _gradients(step)]
        step_function(*gradients)
        if clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, clip_norm)
        reference.apply_gradients(zip(gradients, expected, strict=True))
        for got, want in zip(weights, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert all(np.abs(w - s).max() > 0.01 for w, s in zip(weights, _start(), strict=True))


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_reset_forgets_all_steps(name: str) -> None:
    optimizer = ClientOptimizer(name)
    weights = [tf.Variable(value) for value in _start()]
    slots = optimizer.make_slots(weights)
    assert len(slots) == {"sgd": 0, "momentum": 3, "adam": 7}[name]
    assert all(not slot.trainable and slot.dtype == tf.float32 for slot in slots)

    def two_steps() -> list[Array]:
        for variable, value in zip(weights, _start(), strict=True):
            variable.assign(value)
        for step in range(2):
            optimizer.apply(weights, [tf.constant(g) for g in _gradients(step)], slots, RATE)
        return [weight.numpy() for weight in weights]

    first, unlike = two_steps(), two_steps()
    optimizer.reset(slots)
    again = two_steps()
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert name == "sgd" or any((one != two).any() for one, two in zip(first, unlike, strict=True))


def test_plain_sgd_is_its_formula_to_the_bit() -> None:
    weights = [tf.Variable(value) for value in _start()]
    ClientOptimizer().apply(weights, [tf.constant(g) for g in _gradients(0)], (), RATE)
    for weight, start, gradient in zip(weights, _start(), _gradients(0), strict=True):
        np.testing.assert_array_equal(weight, start - np.float32(RATE) * gradient)


def test_short_gradients_are_clipped_by_nothing() -> None:
    gradients = [tf.constant(g) for g in _gradients(0)]
    for got, want in zip(ClientOptimizer(clip_norm=1e3).clip(gradients), gradients, strict=True):
        np.testing.assert_array_equal(got, want)
    zeros = ClientOptimizer(clip_norm=1.0).clip([tf.zeros(3)])
    np.testing.assert_array_equal(zeros[0], np.zeros(3))


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_a_step_consists_of_a_few_operators(name: str) -> None:
    optimizer = ClientOptimizer(name, clip_norm=1.0)
    weights = [tf.Variable(value) for value in _start()]
    slots = optimizer.make_slots(weights)
    graph = (
        tf.function(lambda *g: optimizer.apply(weights, optimizer.clip(g), slots, RATE), autograph=False)
        .get_concrete_function(*(tf.TensorSpec(shape) for shape in SHAPES))
        .graph
    )
    made = {op.type for op in graph.get_operations()}
    plumbing = {"Placeholder", "Const", "ReadVariableOp", "AssignVariableOp", "NoOp", "Identity"}
    assert made - plumbing <= {"Mul", "AddV2", "Sub", "RealDiv", "Sqrt", "Maximum", "MatMul", "Reshape", "Pow"}


WRONG = [
    ("name", "rmsprop", "one of sgd, momentum, adam, not 'rmsprop'"),
    ("name", None, "one of sgd, momentum, adam, not None"),
    ("momentum", 1.0, "a number of at least 0 and below 1, not 1.0"),
    ("momentum", True, "a number of at least 0 and below 1, not True"),
    ("beta_1", -0.1, "a number of at least 0 and below 1, not -0.1"),
    ("beta_2", "0.9", "a number of at least 0 and below 1, not '0.9'"),
    ("epsilon", 0, "a finite number above 0, not 0"),
    ("epsilon", float("inf"), "a finite number above 0, not inf"),
    ("epsilon", 10**400, f"a finite number above 0, not {10**400}"),
    ("clip_norm", 0.0, "a finite number above 0, or none, not 0.0"),
    ("clip_norm", float("nan"), "a finite number above 0, or none, not nan"),
]


@pytest.mark.parametrize(("field", "value", "expected"), WRONG, ids=lambda value: str(value)[:20])
def test_a_field_out_of_range_is_named(field: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        ClientOptimizer.from_json(ClientOptimizer().to_json() | {field: value})
    assert str(caught.value) == f"optimizer: {field} should be {expected}"


@pytest.mark.parametrize("optimizer", [ClientOptimizer(), ClientOptimizer("adam", 0.0, 0.5, 0.75, 1e-3, 2.0)])
def test_an_optimizer_goes_through_json(optimizer: ClientOptimizer) -> None:
    assert ClientOptimizer.from_json(json.loads(json.dumps(optimizer.to_json()))) == optimizer


@pytest.mark.parametrize("value", [None, [], "adam", {}, {"name": "adam"}, ClientOptimizer().to_json() | {"more": 1}])
def test_an_optimizer_of_another_form_is_refused(value: Any) -> None:
    names = "beta_1, beta_2, clip_norm, epsilon, momentum, name"
    with pytest.raises(ValueError, match=f"^optimizer: expected an object with {names}$"):
        ClientOptimizer.from_json(value)
