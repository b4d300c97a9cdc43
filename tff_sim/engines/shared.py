"""`SharedEngine`: rounds of a TFF process whose worker, on this machine, reads the clients' examples from memory.

What crosses the boundary of TFF's executors is encoded and decoded several times. For small models that costs more
than their training, and all but a few kilobytes of it are examples. So these are put where the worker can read them,
and what crosses is their path.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from device_runtime.work import ClientWork
from tff_sim.algorithms.client_data import client_element
from tff_sim.engines.engine import ClientTask, ProcessEngine
from tff_sim.engines.shared_memory import SharedMemory

_SHARED = ("x", "y")


class SharedEngine(ProcessEngine):
    """The rounds of `ProcessEngine`, to the bit, in less time and memory; within `tff_sim.local_worker()`."""

    def __init__(self, process: Any) -> None:
        super().__init__(process)
        self._next = _reading_examples(process)
        self._memory: list[dict[str, SharedMemory]] = []

    def _data(self, work: ClientWork, tasks: Sequence[ClientTask]) -> list[Any]:
        while len(self._memory) < len(tasks):
            self._memory.append({name: SharedMemory() for name in _SHARED})
        return [self._place(work, task, memory) for task, memory in zip(tasks, self._memory, strict=False)]

    def _place(self, work: ClientWork, task: ClientTask, memory: dict[str, SharedMemory]) -> dict[str, Any]:
        element = client_element(task.examples, work, task.seed, task.factor)
        for name in _SHARED:
            memory[name].write([element[name]])
            element[name] = memory[name].path
        return element


def _reading_examples(process: Any) -> Any:
    """`process.next` for clients' data in which x and y are the paths of files with their bytes."""
    state_type, data_type = process.next.type_signature.parameter
    element: Any = data_type.member.element
    told = {
        name: tff.TensorType(np.str_) if name in _SHARED else element[name] for name in tff.structure.name_list(element)
    }

    @tff.tensorflow.computation(tff.to_type(collections.OrderedDict(told)))
    def read(data: Any) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensors(
            collections.OrderedDict(
                (name, _array(data[name], element[name]) if name in _SHARED else data[name]) for name in told
            )
        )

    @tff.federated_computation(state_type, tff.FederatedType(read.type_signature.parameter, tff.CLIENTS))
    def next_fn(state: Any, data: Any) -> Any:
        return process.next(state, tff.federated_map(read, data))

    return next_fn


def _array(path: tf.Tensor, tensor: Any) -> tf.Tensor:
    """The file's bytes as a tensor of this type, whose first dimension alone is free."""
    values = tf.io.decode_raw(tf.io.read_file(path), tf.dtypes.as_dtype(tensor.dtype), little_endian=True)
    return tf.reshape(values, [-1, *tensor.shape[1:]])
