"""TensorFlow's side: python -m benchmarks.sides.tensorflow MODEL THREADS BATCH_SIZE."""

from __future__ import annotations

import sys

import numpy as np
import tensorflow as tf

import models
from benchmarks.sides import take_turns
from export.reference import KerasTrainer, synthetic_batch


def main(name: str, threads: str, batch_size: str) -> None:
    """Steps of the compiled Keras model, as the parity check takes them."""
    tf.config.threading.set_intra_op_parallelism_threads(int(threads))
    tf.config.threading.set_inter_op_parallelism_threads(int(threads))
    spec = models.get(name)
    trainer = KerasTrainer(spec, models.initial_weights(spec, 0))
    classes = spec.build().output_shape[-1]
    x, y = synthetic_batch(spec, classes, int(batch_size), np.random.default_rng(0))
    take_turns(lambda: trainer.step(x, y, 0.01))


if __name__ == "__main__":
    main(*sys.argv[1:])
