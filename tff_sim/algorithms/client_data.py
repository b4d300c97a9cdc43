"""A client's data as TFF sees it: dense arrays, and the order in which to go through them.

TFF's templates want client data to be a sequence; here it is a sequence of one element that holds all of a
client's examples, so that no tf.data pipeline runs inside the training loop. The order and the steps' seeds come
from the protocol's own functions (`device_runtime.batching` and `device_runtime.work`), those that devices call.
"""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_federated as tff

from device_runtime.batching import epoch_order
from device_runtime.errors import InputError
from device_runtime.examples import Examples
from device_runtime.work import ClientWork, step_seeds
from models import ModelSpec


def client_data_type(spec: ModelSpec) -> Any:
    """TFF's type of one client's data, a sequence of one element; see `client_dataset`."""
    element = collections.OrderedDict(
        x=tff.TensorType(spec.input.dtype.as_numpy_dtype, spec.input.shape),
        y=tff.TensorType(spec.label.dtype.as_numpy_dtype, spec.label.shape),
        order=tff.TensorType(np.int32, [None, None]),
        seeds=tff.TensorType(np.int32, [None]),
        learning_rate=tff.TensorType(np.float32),
        factor=tff.TensorType(np.float32),
        seed=tff.TensorType(np.int64),
    )
    return tff.SequenceType(tff.to_type(element))


def client_dataset(examples: Examples, work: ClientWork, seed: int, factor: float = 1.0) -> tf.data.Dataset:
    """One client's data in one round, as an argument for `LearningProcess.next`: a data set of one `client_element`.

    Arguments and errors are those of `client_element`. What does not have the model's types and shapes is refused by
    `LearningProcess.next`, with a TypeError.
    """
    return tf.data.Dataset.from_tensors(client_element(examples, work, seed, factor))


def client_element(examples: Examples, work: ClientWork, seed: int, factor: float = 1.0) -> dict[str, Any]:
    """What is told to one client in one round, and its examples.

    It holds x [n, …], y [n, …], order int32 [E, n], seeds int32 [E·n] and the scalars learning_rate and factor,
    float32, and seed, int64; an `OrderedDict`, since TFF wants one.

    Args:
        examples: n ≥ 1 local examples.
        work: epochs and learning rate of this round; all else is the process's own.
        seed: the client's seed in this round; see `device_runtime.work.client_seed`.
        factor: what its delta is multiplied by; other than 1, it stands for a corrupt or malicious update.

    Raises:
        InputError: the client has no examples, or not as many labels.
    """
    order, seeds = client_order(examples, work, seed)
    return collections.OrderedDict(
        x=examples.x,
        y=examples.y,
        order=order,
        seeds=seeds,
        learning_rate=np.float32(work.learning_rate),
        factor=np.float32(factor),
        seed=np.int64(seed),
    )


def client_order(
    examples: Examples, work: ClientWork, seed: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """`order` and `seeds` of a `client_element`.

    Raises:
        InputError: the client has no examples, or not as many labels.
    """
    if len(examples.y) != len(examples):
        raise InputError(f"a client has {len(examples)} rows of x and {len(examples.y)} of y; expected as many of both")
    if len(examples) == 0:
        raise InputError("a client without examples can't take part in a round; leave it out of the cohort")
    order = np.stack([epoch_order(len(examples), seed, epoch) for epoch in range(work.epochs)]).astype(np.int32)
    return order, step_seeds(seed, order.size)  # enough for any batch size: a step has at least one example
