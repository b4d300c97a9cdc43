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

from device_runtime.errors import InputError
from device_runtime.tensors import Weights, describe
from device_runtime.work import ClientWork
from models import ModelSpec
from tff_sim.algorithms.algorithm import FED_AVG, Algorithm
from tff_sim.algorithms.client_files import FILES, client_files_type, file_contents
from tff_sim.algorithms.fed_avg import build_fed_avg
from tff_sim.engines.engine import ClientTask, ProcessEngine
from tff_sim.engines.shared_memory import SharedMemory
from tff_sim.pixels import rows


class SharedEngine(ProcessEngine):
    """The rounds of `ProcessEngine`, to the bit, in less time and memory; within `tff_sim.local_worker()`.

    Args:
        spec, work, initial_weights, algorithm: as `build_fed_avg` takes them.

    Raises:
        InputError: of a round, a client's examples do not fit the model.
    """

    def __init__(
        self, spec: ModelSpec, work: ClientWork, initial_weights: Weights, algorithm: Algorithm = FED_AVG
    ) -> None:
        process = build_fed_avg(spec, work, initial_weights, algorithm, in_files=True)
        super().__init__(process)
        self._spec = spec
        self._next = _taking_files(process)
        self._memory: list[list[SharedMemory]] = []

    def _data(self, work: ClientWork, tasks: Sequence[ClientTask]) -> list[Any]:
        while len(self._memory) < len(tasks):
            self._memory.append([SharedMemory() for _ in range(FILES)])
        return [self._place(work, task, files) for task, files in zip(tasks, self._memory, strict=False)]

    def _place(self, work: ClientWork, task: ClientTask, files: Sequence[SharedMemory]) -> list[str]:
        self._check(task)
        for file, arrays in zip(files, file_contents(task.examples, work, task.seed, task.factor), strict=True):
            file.write(arrays)
        return [file.path for file in files]

    def _check(self, task: ClientTask) -> None:
        # Files have no types: what is wrong would be read as something else.
        first = rows(task.examples, slice(0, 1))
        for spec, array in ((self._spec.input, first.x), (self._spec.label, first.y)):
            if array.dtype != spec.dtype.as_numpy_dtype or not spec.shape.is_compatible_with(array.shape):
                raise InputError(
                    f"model {self._spec.name!r} takes {spec.dtype.name}{spec.shape.as_list()}, and the examples of"
                    f" {task.name!r} have {describe(array)}"
                )


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
