"""Rounds of TFF's own processes over the batches that devices would take."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

import models
from device_runtime.batching import batch_indices
from device_runtime.examples import Examples
from device_runtime.tensors import Weights
from device_runtime.work import ClientWork, client_seed


def stock_model() -> Any:
    """`digits_mlp` as TFF's builders take it."""
    spec = models.get("digits_mlp")
    return tff.learning.models.from_keras_model(
        spec.build(),
        loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        input_spec=(spec.input, spec.label),
    )


def stock_fed_avg(work: ClientWork, **options: Any) -> Any:
    """`tff.learning.algorithms.build_weighted_fed_avg` with the rate of the work, and further options."""
    sgdm = tff.learning.optimizers.build_sgdm
    return tff.learning.algorithms.build_weighted_fed_avg(
        stock_model, client_optimizer_fn=sgdm(work.learning_rate), server_optimizer_fn=sgdm(1.0), **options
    )


def stock_round(
    process: Any, clients: Mapping[str, Examples], work: ClientWork, initial: Weights
) -> tuple[Weights, Any]:
    """Weights and metrics after a first round of one of TFF's processes."""
    start = tff.learning.models.ModelWeights(trainable=list(initial), non_trainable=[])
    state = process.set_model_weights(process.initialize(), start)
    data = [_batches(examples, work, client_seed(work.seed, 1, name)) for name, examples in clients.items()]
    output = process.next(state, data)
    return tuple(process.get_model_weights(output.state).trainable), output.metrics


def _batches(examples: Examples, work: ClientWork, seed: int) -> tf.data.Dataset:
    """In the protocol's order."""
    batches = [
        tf.data.Dataset.from_tensors((examples.x[indices], examples.y[indices]))
        for epoch in range(work.epochs)
        for indices in batch_indices(len(examples), work.batch_size, seed, epoch)
    ]
    return functools.reduce(lambda done, more: done.concatenate(more), batches)
