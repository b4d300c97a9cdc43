"""`ModelSpec`: all that the simulation, the export and the device need to know of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

from models.losses import LOSSES
from models.metrics import METRICS
from models.optimizers import PLAIN_SGD, ClientOptimizer


@dataclass(frozen=True)
class ModelSpec:
    """A model that can be simulated and exported.

    Attributes:
        name: its name in the registry; also the name of its bundles and populations.
        build: makes a fresh Keras model, without arguments; it returns logits, without a softmax layer.
            Every layer with weights is named, because manifests and weight files carry these names.
        input: shape and dtype of a batch of features; the first dimension, the batch, is None.
        label: the same of a batch of labels.
        loss: the training loss, a key of `models.losses.LOSSES`.
        metric: the evaluation metric, a key of `models.metrics.METRICS`.
        source: where the architecture comes from.
        optimizer: of the client's local training; plain SGD unless said otherwise.

    Raises:
        ValueError: loss or metric is not known, or `build` is a model; one line that names it.
    """

    name: str
    build: Callable[[], tf.keras.Model]
    input: tf.TensorSpec
    label: tf.TensorSpec
    loss: str
    metric: str
    source: str
    optimizer: ClientOptimizer = PLAIN_SGD

    def __post_init__(self) -> None:
        if isinstance(self.build, tf.keras.Model):
            raise ValueError(f"model {self.name!r}: build should be a function that makes the model, not a model")
        for field, value, known in (("loss", self.loss, LOSSES), ("metric", self.metric, METRICS)):
            if value not in known:
                raise ValueError(
                    f"model {self.name!r}: {field} should be one of {', '.join(sorted(known))}, not {value!r}"
                )
