"""A step of the 2NN written out in TFLite builtins, once as a signature and once in a While over an epoch's batches."""

from __future__ import annotations

import itertools
import tempfile

import numpy as np
import tensorflow as tf

_SIZES = (784, 200, 200, 10)
BATCH = 10
STEPS = 60
"""Of an epoch: 600 examples, as in the paper's experiments."""


class HandWritten(tf.Module):
    """784-200-200-10 with ReLU and plain SGD."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        pairs = list(itertools.pairwise(_SIZES))
        self.kernels = [tf.Variable((rng.standard_normal(pair) * 0.05).astype(np.float32)) for pair in pairs]
        self.biases = [tf.Variable(tf.zeros(pair[1])) for pair in pairs]
        spec = tf.TensorSpec
        self.step = tf.function(
            self._step, input_signature=[spec((BATCH, 784), name="x"), spec((BATCH, 10), name="y")], autograph=False
        )
        many = [spec((STEPS, BATCH, 784), name="x"), spec((STEPS, BATCH, 10), name="y")]
        self.epoch = tf.function(self._epoch, input_signature=many, autograph=False)

    def _step(self, x: tf.Tensor, y: tf.Tensor) -> dict[str, tf.Tensor]:
        """x [B, 784], y one-hot [B, 10]."""
        states = [x]
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1], strict=True):
            states.append(tf.nn.relu(tf.matmul(states[-1], kernel) + bias))
        logits = tf.matmul(states[-1], self.kernels[-1]) + self.biases[-1]
        loss = -tf.reduce_sum(tf.nn.log_softmax(logits) * y) / BATCH
        gradient = (tf.nn.softmax(logits) - y) / BATCH
        for state, kernel, bias in zip(states[::-1], self.kernels[::-1], self.biases[::-1], strict=True):
            before = tf.matmul(gradient, kernel, transpose_b=True) * tf.sign(state)
            kernel.assign(kernel - 0.01 * tf.matmul(state, gradient, transpose_a=True))
            bias.assign(bias - 0.01 * tf.reduce_sum(gradient, 0))
            gradient = before
        return {"loss": loss}

    def _epoch(self, x: tf.Tensor, y: tf.Tensor) -> dict[str, tf.Tensor]:
        def body(i: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return i + 1, total + self._step(tf.gather(x, i), tf.gather(y, i))["loss"]

        _, total = tf.while_loop(lambda i, total: i < STEPS, body, (tf.constant(0), tf.constant(0.0)))
        return {"loss": total / STEPS}

    def convert(self) -> bytes:
        """A TFLite file with the signatures `step` and `epoch`."""
        with tempfile.TemporaryDirectory() as folder:
            tf.saved_model.save(self, folder, signatures={"step": self.step, "epoch": self.epoch})
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            converter.experimental_enable_resource_variables = True
            artifact: bytes = converter.convert()
        return artifact
