"""`ModelSpec`: all that the simulation, the export and the device need to know of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf


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
        metric: the evaluation metric; ``accuracy`` is the share of examples whose largest logit is the label.
        source: where the architecture comes from.
    """

    name: str
    build: Callable[[], tf.keras.Model]
    input: tf.TensorSpec
    label: tf.TensorSpec
    loss: str
    metric: str
    source: str
