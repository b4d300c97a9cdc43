"""The training artifact holds no values of variables, and each constant once."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from export.compaction import compact
from export.convert import training_artifact
from export.operators import read_operators

SIZE = 4000
X = tf.TensorSpec((None, SIZE), name="x")


def _functions(variable: tf.Variable, tables: list[Any]) -> dict[str, Any]:
    """A signature for each table, which multiplies an input with it and the variable; and one that sets that."""

    def function(table: Any) -> Any:
        body = tf.function(lambda x: {"y": x * tf.constant(table) * variable}, autograph=False)
        return body.get_concrete_function(X)

    def assign(w: tf.Tensor) -> dict[str, tf.Tensor]:
        variable.assign(w)
        return {"count": tf.constant(float(SIZE))}

    assigned = tf.function(assign, autograph=False).get_concrete_function(tf.TensorSpec((SIZE,), name="w"))
    return {f"with_{number}": function(table) for number, table in enumerate(tables)} | {"assign": assigned}


def test_values_of_variables_are_left_out() -> None:
    variable = tf.Variable(np.random.default_rng(0).random(SIZE), dtype=tf.float32)
    artifact = training_artifact(_functions(variable, [2.0]))
    assert len(artifact) < 4 * SIZE
    assert "CALL_ONCE" not in read_operators(artifact, "artifact").builtin


def test_a_constant_of_two_signatures_is_there_once() -> None:
    variable = tf.Variable(tf.zeros(SIZE))
    one, other = (np.random.default_rng(seed).random(SIZE).astype(np.float32) for seed in (0, 1))
    assert len(training_artifact(_functions(variable, [one, one]))) < 2 * 4 * SIZE
    different = training_artifact(_functions(variable, [one, other]))
    assert len(different) > 2 * 4 * SIZE
    assert compact(different) is different
