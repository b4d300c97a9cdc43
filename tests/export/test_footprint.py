"""What a training step keeps at once, as the manifest says it."""

from __future__ import annotations

import tensorflow as tf

from device_runtime.bundle import TRAIN_ARTIFACT, Bundle
from export.convert import training_artifact
from export.footprint import step_footprint


def _padded(elements: int) -> int:
    return -(-4 * elements // 64) * 64


def test_a_step_s_tensors_are_counted_while_they_are_kept() -> None:
    """Of x, two products and a sum, the sum's operands and the sum are there at once at most, and x no longer."""

    def train(x: tf.Tensor) -> dict[str, tf.Tensor]:
        wide = tf.matmul(x, tf.constant(1.0, shape=(10, 500)))
        narrow = tf.matmul(wide, tf.constant(1.0, shape=(500, 300)))
        return {"y": tf.sqrt(narrow)}

    x = tf.TensorSpec((None, 10), tf.float32, name="x")
    artifact = training_artifact({"train": tf.function(train, autograph=False).get_concrete_function(x)})
    footprint = step_footprint(artifact)
    # At a batch of 8 and of 16 these are multiples of the alignment: a straight line, and no more.
    assert footprint.per_example == 4 * (500 + 300)
    assert footprint.fixed == 0
    assert footprint.per_example * 8 == _padded(8 * 500) + _padded(8 * 300)


def test_the_footprint_of_a_model(digits_bundle: Bundle) -> None:
    footprint = digits_bundle.manifest.footprint
    assert footprint == step_footprint(digits_bundle.file(TRAIN_ARTIFACT).read_bytes())
    # The large kernel, its gradient and its new value; of an example at least what goes in.
    assert 3 * 4 * 64 * 64 <= footprint.fixed <= 5 * 4 * 64 * 64
    assert footprint.per_example >= 4 * 64
