"""Rounds of clients that a device's own program trains; what the server makes of their deltas is TFF's part."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_federated as tff

from device_runtime.bundle import open_bundle
from device_runtime.errors import InputError
from device_runtime.tensors import Weights, describe
from device_runtime.work import ClientWork
from tff_sim.algorithms.algorithm import FED_AVG, Algorithm
from tff_sim.algorithms.fed_avg import build_server_update
from tff_sim.engines.device.job import Answer, Job, SharedArray
from tff_sim.engines.device.pool import DevicePool
from tff_sim.engines.engine import ClientTask, EngineRound, server_counts
from tff_sim.engines.shared_memory import SharedMemory


class DeviceEngine:
    """The rounds of `ProcessEngine`, with the bundle's artifact in the place of TensorFlow's training.

    A context manager, for use within `tff_sim.local_worker()`: deltas reach the aggregator in shared memory.

        with local_worker(), DeviceEngine(bundle, work) as engine:
            for done in simulate(engine, …): …

    Args:
        bundle: path of the bundle; its weights are those of the first round.
        work: names the codec of the clients' updates; all else comes with each round.
        algorithm: what the server makes of the deltas.
        processes: that train at a time; the number of cores unless said otherwise.

    Raises:
        IntegrityError: the bundle is damaged.
        InputError: no process can work with it; or, of a round, a client's examples do not fit it.
        NetworkError: a process ended, and another one that took its place did so too.
    """

    def __init__(
        self, bundle: Path, work: ClientWork, algorithm: Algorithm = FED_AVG, processes: int | None = None
    ) -> None:
        opened = open_bundle(bundle)
        self._bundle, self._specs = bundle, opened.manifest.examples
        weights = opened.initial_weights()
        self._sizes = [weight.size for weight in weights]
        self._server = build_server_update(work, weights, algorithm)
        self._next = _reading_deltas(self._server, encoded=work.codec != "f32")
        self._pool = DevicePool(bundle, processes)
        self._rounds = 0
        self._weights = SharedMemory()
        self._examples: dict[int, tuple[SharedMemory, SharedMemory]] = {}
        self._deltas: list[SharedMemory] = []

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()

    @property
    def processes(self) -> list[int]:
        """Process ids of the pool."""
        return self._pool.processes

    def initialize(self) -> Any:
        return self._server.initialize()

    def round(self, state: Any, work: ClientWork, tasks: Sequence[ClientTask]) -> EngineRound:
        for task in tasks:
            self._check(task)
        answers = self._train(state.global_model_weights.trainable, work, tasks)
        results = [
            {
                "path": memory.path,
                "examples": np.float32(len(task.examples)),
                "factor": np.float32(task.factor),
                "seed": np.int64(task.seed),
            }
            for task, memory in zip(tasks, self._deltas, strict=False)
        ]
        output = self._next(state, results)
        measured = output.metrics["aggregator"]
        return EngineRound(
            state=output.state,
            weights=tuple(np.asarray(value) for value in output.state.global_model_weights.trainable),
            train_loss=_mean_loss(tasks, answers),
            clients=int(measured["clients"]),
            examples=int(measured["examples"]),
            counts=server_counts(output.metrics),
        )

    def _train(self, weights: Weights, work: ClientWork, tasks: Sequence[ClientTask]) -> list[Answer]:
        """Each client's answer; its delta is in the memory of its place."""
        self._rounds += 1
        self._weights.write(weights)
        placed, end = [], 0
        for weight in weights:
            placed.append(SharedArray(self._weights.path, "float32", weight.shape, end))
            end += weight.nbytes
        self._deltas += [SharedMemory() for _ in range(len(tasks) - len(self._deltas))]
        longest_first = sorted(range(len(tasks)), key=lambda place: -len(tasks[place].examples))

        def make_job(turn: int, process: int) -> Job:
            place = longest_first[turn]
            task, delta = tasks[place], self._deltas[place]
            delta.resize(end)
            memory = self._examples.setdefault(process, (SharedMemory(), SharedMemory()))
            x, y = (_share(part, array) for part, array in zip(memory, (task.examples.x, task.examples.y), strict=True))
            numbers = SharedArray(delta.path, "float32", (sum(self._sizes),))
            return Job(self._rounds, tuple(placed), x, y, replace(work, seed=task.seed), numbers)

        answers = self._pool.run([tasks[place].name for place in longest_first], make_job)
        return [answer for _, answer in sorted(zip(longest_first, answers, strict=True), key=lambda pair: pair[0])]

    def _check(self, task: ClientTask) -> None:
        if len(task.examples) == 0:
            raise InputError(f"{task.name!r} has no examples; leave it out of the cohort")
        for spec, array in zip(self._specs, (task.examples.x, task.examples.y), strict=True):
            if not spec.accepts(array):
                raise InputError(
                    f"{self._bundle}: a bundle of another model: it takes {spec.name} of {spec}, and the examples of"
                    f" {task.name!r} have {describe(array)}"
                )


def _share(memory: SharedMemory, array: npt.NDArray[Any]) -> SharedArray:
    memory.write([array])
    return SharedArray(memory.path, str(array.dtype), array.shape)


def _mean_loss(tasks: Sequence[ClientTask], answers: Sequence[Answer]) -> float:
    """Mean loss over all examples of all steps, of clients whose loss is finite; NaN if none is."""
    finite = [(a.loss, len(t.examples)) for t, a in zip(tasks, answers, strict=True) if math.isfinite(a.loss)]
    examples = sum(count for _, count in finite)
    return math.fsum(loss * count for loss, count in finite) / examples if examples else math.nan


def _reading_deltas(server: Any, encoded: bool) -> Any:
    """`server.next` for clients that give the path of their delta's bytes, their examples' number, factor and seed.

    With a codec, the server takes the seed beside the delta, and encodes as the device would (`encoded_type`).
    """
    state_type, results_type = server.next.type_signature.parameter
    update_type: Any = results_type.member.update
    shapes = [tensor.shape for tensor in (update_type.delta if encoded else update_type)]
    sizes = [math.prod(shape) for shape in shapes]

    @tff.tensorflow.computation(np.str_, np.float32, np.float32, np.int64)
    @tf.function
    def read(path: Any, examples: Any, factor: Any, seed: Any) -> Any:
        numbers = tf.split(tf.io.decode_raw(tf.io.read_file(path), tf.float32, little_endian=True), sizes)
        # Weights before minus weights after, which is what TFF's finalizers take.
        delta = [-tf.reshape(part, shape) * factor for part, shape in zip(numbers, shapes, strict=True)]
        update = collections.OrderedDict(delta=delta, seed=seed) if encoded else delta
        return tff.learning.templates.ClientResult(update, examples)

    told = tff.to_type({"path": np.str_, "examples": np.float32, "factor": np.float32, "seed": np.int64})

    @tff.federated_computation(state_type, tff.FederatedType(told, tff.CLIENTS))
    def next_fn(state: Any, told: Any) -> Any:
        return server.next(state, tff.federated_map(read, (told.path, told.examples, told.factor, told.seed)))

    return next_fn
