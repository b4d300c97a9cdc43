"""How little an artifact keeps at once: large kernels in slabs, values read when they are taken."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema

from device_runtime.bundle import StoredVariable
from export.flatbuffer import subgraph_index, unpack
from export.layout import SLAB
from export.runtimes import Runtime
from models import ClientOptimizer
from tests.export.parity_case import Array, Case

pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")

ROWS, COLUMNS = 1201, 500


@cache
def large(optimizer: str) -> Case:
    """A kernel of three slabs between two small ones."""
    tf.keras.utils.set_random_seed(3)
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [layers.Input((6,)), layers.Dense(ROWS, "tanh"), layers.Dense(COLUMNS, "tanh"), layers.Dense(2)]
    )

    def batch(rng: np.random.Generator, size: int) -> tuple[Array, Array]:
        return (rng.standard_normal((size, n)).astype(np.float32) for n in (6, 2))  # type: ignore[return-value]

    label = tf.TensorSpec((None, 2), tf.float32)
    rate = 0.001 if optimizer == "adam" else 0.05
    return Case(model, label, batch, optimizer=ClientOptimizer(optimizer), learning_rate=rate, proximal=0.3)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_slabs_train_as_the_whole_kernel_does(optimizer: str, runtime: Runtime) -> None:
    case = large(optimizer)
    record = case.run(runtime)
    assert case.problems(record) == []
    assert case.common_problems(record) == []


def test_a_large_kernel_is_in_slabs_of_rows() -> None:
    case = large("sgd")
    assert ROWS * COLUMNS > 2 * SLAB
    slabs = [one for one in case.stored if one.tensor == 2]
    assert slabs == [
        StoredVariable(2, 0, 401 * COLUMNS),
        StoredVariable(2, 401 * COLUMNS, 401 * COLUMNS),
        StoredVariable(2, 802 * COLUMNS, 399 * COLUMNS),
    ]
    assert [one.transposed for one in case.stored if one.tensor == 0] == [True]  # the first layer's


def test_a_slab_is_read_when_it_is_taken_and_no_earlier() -> None:
    """As long as the value of one slab is kept, no other one's is."""
    model = unpack(large("sgd").artifact)
    graph = model.subgraphs[subgraph_index(model, "train")]
    reads = {
        int(operator.outputs[0]): position
        for position, operator in enumerate(graph.operators)
        if _code(model, operator) == schema.BuiltinOperator.READ_VARIABLE
        and np.prod(graph.tensors[operator.outputs[0]].shape) > SLAB / 2
    }
    last = {
        value: max(position for position, operator in enumerate(graph.operators) if value in list(operator.inputs))
        for value in reads
    }
    assert len(reads) >= 6  # forwards, and on the way back
    spans = sorted((reads[value], last[value]) for value in reads)
    # On the way back a slab's value is taken twice, and the next slab's turn comes after its assignment.
    assert all(sum(first <= position <= end for first, end in spans) <= 2 for position in range(len(graph.operators)))


def _code(model: Any, operator: Any) -> int:
    return int(model.operatorCodes[operator.opcodeIndex].builtinCode)
