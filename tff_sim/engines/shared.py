"""`SharedEngine`: rounds of a TFF process whose worker, on this machine, reads the clients' examples from memory.

What crosses the boundary of TFF's executors is encoded and decoded several times, and so is a sequence that goes from
one computation to the next. For small models that costs more than their training, and all but a few kilobytes of it are
examples. So these are put where the worker can read them in the midst of the training, and what crosses is their path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from device_runtime.work import ClientWork
from tff_sim.algorithms.client_files import FILES, client_files_type, file_contents
from tff_sim.engines.engine import ClientTask, ProcessEngine
from tff_sim.engines.shared_memory import SharedMemory


class SharedEngine(ProcessEngine):
    """The rounds of `ProcessEngine`, to the bit, in less time and memory; within `tff_sim.local_worker()`.

    Args:
        process: from `build_fed_avg`, with its examples `in_files`.
    """

    def __init__(self, process: Any) -> None:
        super().__init__(process)
        self._next = _taking_files(process)
        self._memory: list[list[SharedMemory]] = []

    def _data(self, work: ClientWork, tasks: Sequence[ClientTask]) -> list[Any]:
        while len(self._memory) < len(tasks):
            self._memory.append([SharedMemory() for _ in range(FILES)])
        return [_place(work, task, files) for task, files in zip(tasks, self._memory, strict=False)]


def _place(work: ClientWork, task: ClientTask, files: Sequence[SharedMemory]) -> list[str]:
    for file, arrays in zip(files, file_contents(task.examples, work, task.seed, task.factor), strict=True):
        file.write(arrays)
    return [file.path for file in files]


def _taking_files(process: Any) -> Any:
    """`process.next` for the elements of the clients' sequences, which the worker then makes."""
    state_type, _ = process.next.type_signature.parameter

    @tff.tensorflow.computation(client_files_type)
    def sequence(files: Any) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensors(files)

    @tff.federated_computation(state_type, tff.FederatedType(client_files_type, tff.CLIENTS))
    def next_fn(state: Any, files: Any) -> Any:
        return process.next(state, tff.federated_map(sequence, files))

    return next_fn
