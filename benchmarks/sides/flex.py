"""TensorFlow Lite's own recipe for training on devices: python -m benchmarks.sides.flex MODEL THREADS BATCH_SIZE.

A GradientTape in a tf.function, converted with SELECT_TF_OPS, as https://ai.google.dev/edge/litert/models/ondevice_training
describes it. Its operators need the Flex delegate, which TensorFlow's own interpreter has and tflite-runtime has not.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import numpy as np
import tensorflow as tf

import models
from benchmarks.sides import take_turns
from export.reference import synthetic_batch
from models.losses import LOSSES


class Recipe(tf.Module):
    """A Keras model with a function that takes a step of SGD."""

    def __init__(self, spec: models.ModelSpec) -> None:
        super().__init__()
        self.model = spec.build()
        x = tf.TensorSpec(spec.input.shape, spec.input.dtype, name="x")
        y = tf.TensorSpec(spec.label.shape, spec.label.dtype, name="y")

        @tf.function(input_signature=[x, y, tf.TensorSpec((), tf.float32, name="learning_rate")])
        def train(x: tf.Tensor, y: tf.Tensor, learning_rate: tf.Tensor) -> dict[str, tf.Tensor]:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(LOSSES[spec.loss](y, self.model(x, training=True)))
            weights = self.model.trainable_variables
            for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
                weight.assign_sub(learning_rate * gradient)
            return {"loss": loss}

        self.train = train

    def convert(self) -> bytes:
        """The recipe's TFLite file."""
        with tempfile.TemporaryDirectory() as folder:
            tf.saved_model.save(self, folder, signatures={"train": self.train})
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
            converter.experimental_enable_resource_variables = True
            artifact: bytes = converter.convert()
        return artifact


def main(name: str, threads: str, batch_size: str) -> None:
    """Steps of the recipe's `train` signature."""
    spec = models.get(name)
    recipe = Recipe(spec)
    interpreter = tf.lite.Interpreter(model_content=recipe.convert(), num_threads=int(threads))
    train: Any = interpreter.get_signature_runner("train")
    classes = recipe.model.output_shape[-1]
    x, y = synthetic_batch(spec, classes, int(batch_size), np.random.default_rng(0))
    take_turns(lambda: train(x=x, y=y, learning_rate=np.float32(0.01)))


if __name__ == "__main__":
    main(*sys.argv[1:])
