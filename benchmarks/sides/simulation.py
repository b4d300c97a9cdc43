"""Rounds of a simulation: python -m benchmarks.sides.simulation ENGINE MODEL DATA BUNDLE.

ENGINE is ``default``, ``device`` or ``stock``, the last TFF's own `build_weighted_fed_avg` as its tutorials use it;
DATA is MNIST's folder, or ``digits``; BUNDLE is the model's. A tenth of 100 clients with 600 examples each takes part
in a round, E = 1, B = 10, lr 0.1.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

import models
from benchmarks.digits import enlarged
from benchmarks.sides import take_turns
from device_runtime.bundle import open_bundle
from device_runtime.examples import Examples
from device_runtime.work import ClientWork
from tff_sim import datasets
from tff_sim.engines.device import DeviceEngine
from tff_sim.engines.engine import Engine
from tff_sim.engines.shared import SharedEngine
from tff_sim.experiments.evaluation import Evaluator
from tff_sim.federated_data import DataSpec, make_population
from tff_sim.partition import deal
from tff_sim.partition.schemes import Iid
from tff_sim.plan import random_cohorts
from tff_sim.population import DealtPopulation, Population
from tff_sim.simulation import always, simulate
from tff_sim.workers.local import local_worker

_CLIENTS, _EXAMPLES, _FRACTION = 100, 600, 0.1
_WORK = ClientWork(epochs=1, batch_size=10, learning_rate=0.1)


def load(data: str) -> tuple[Population, Examples]:
    """The clients, and test examples: MNIST's as `pocketfed simulate` has them, or as many of the digits, enlarged."""
    if data != "digits":
        made = make_population(DataSpec("mnist", Path(data), Iid(), _CLIENTS))
        return made.clients, made.test
    digits = datasets.load("digits")
    train, count = enlarged(digits.train), _CLIENTS * _EXAMPLES
    # Each example is there several times: a round takes as long, and the memory is as much.
    train = Examples(np.resize(train.x, (count, *train.x.shape[1:])), np.resize(train.y, count))
    dataset = datasets.Dataset("digits", train, enlarged(digits.test))
    return DealtPopulation(train, deal(dataset, Iid(), _CLIENTS, 0)), dataset.test


def ours(
    context: contextlib.ExitStack,
    engine_name: str,
    spec: models.ModelSpec,
    clients: Population,
    test: Examples,
    bundle: Path,
) -> Callable[[], object]:
    """A function that carries out a round; the initial weights were evaluated, as `pocketfed simulate` does."""
    context.enter_context(local_worker())
    engine: Engine
    if engine_name == "device":
        engine = context.enter_context(DeviceEngine(bundle, _WORK))
    else:
        engine = SharedEngine(spec, _WORK, open_bundle(bundle).initial_weights())
    Evaluator(spec, test)(open_bundle(bundle).initial_weights())
    plan = random_cohorts(clients.names, _FRACTION, 0)
    rounds = simulate(engine, always(clients), always(_WORK), plan, range(1, sys.maxsize))
    return lambda: next(rounds)


def stock(context: contextlib.ExitStack, spec: models.ModelSpec, clients: Population) -> Callable[[], object]:
    """The same round by TFF's own means."""
    context.callback(_end_children)  # TFF leaves its worker running

    def model_fn() -> object:
        return tff.learning.models.from_keras_model(
            spec.build(),
            loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            input_spec=(spec.input, spec.label),
            metrics=[tf.keras.metrics.SparseCategoricalAccuracy()],
        )

    process = tff.learning.algorithms.build_weighted_fed_avg(
        model_fn,
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(_WORK.learning_rate),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
    )
    plan = random_cohorts(clients.names, _FRACTION, 0)
    state, number = process.initialize(), 0

    def step() -> None:
        nonlocal state, number
        number += 1
        data = []
        for name in plan(number).reports:
            examples = clients[name]
            whole = tf.data.Dataset.from_tensor_slices((examples.x, examples.y))
            data.append(whole.shuffle(_EXAMPLES, seed=number).batch(10))
        state = process.next(state, data).state

    return step


def _end_children() -> None:
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            if f"PPid:\t{os.getpid()}\n" in status.read_text():
                os.kill(int(status.parent.name), signal.SIGKILL)


def main(engine: str, model: str, data: str, bundle: str) -> None:
    """Rounds, when they are asked for."""
    spec = models.get(model)
    clients, test = load(data)
    with contextlib.ExitStack() as context:
        if engine == "stock":
            take_turns(stock(context, spec, clients))
        else:
            take_turns(ours(context, engine, spec, clients, test, Path(bundle)))


if __name__ == "__main__":
    main(*sys.argv[1:])
