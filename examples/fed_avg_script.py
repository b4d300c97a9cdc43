"""Two processes in one TFF script: TFF's own weighted FedAvg, and pocketfed's over the same clients and cohorts.

The loop, evaluation, program state and releases are TFF's own, and know nothing of where a process comes from.

    python examples/fed_avg_script.py --rounds 20 --out runs/script

Run it again with more rounds, or after it was killed, and it goes on from the last round that it saved.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# `tff.program.FileProgramStateManager` writes SavedModels, which TensorFlow 2.14 can't beside a typing-extensions from
# 4.6 on unless wrapt is in plain Python; to be said before TensorFlow is imported.
os.environ.setdefault("WRAPT_DISABLE_EXTENSIONS", "1")

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

import models
import tff_sim
from device_runtime.examples import Examples
from device_runtime.work import ClientWork, client_seed
from tff_sim import datasets
from tff_sim.algorithms.algorithm import SERVER_OPTIMIZERS
from tff_sim.partition import partition
from tff_sim.plan import Planner, random_cohorts

SPEC = models.get("digits_mlp")
WORK = ClientWork(epochs=2, batch_size=10, learning_rate=0.1)


def keras_model() -> Any:
    """The Keras model of the registry, as TFF takes it."""
    return tff.learning.models.from_keras_model(
        SPEC.build(),
        loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        input_spec=(SPEC.input, SPEC.label),
        metrics=[tf.keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )


@dataclass(frozen=True)
class Contender:
    """A learning process, and how it wants one client's data in one round."""

    name: str
    process: Any
    data: Callable[[Examples, int], tf.data.Dataset]


def contenders(initial: Any, server_optimizer: str) -> list[Contender]:
    """TFF's process and ours; `initial` are the weights that both start from."""
    optimizer = tff_sim.ServerOptimizer(server_optimizer)
    stock = tff.learning.algorithms.build_weighted_fed_avg(
        keras_model,
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(WORK.learning_rate),
        server_optimizer_fn=tff_sim.build_server_optimizer(optimizer),
    )
    ours = tff_sim.build_fed_avg(SPEC, WORK, initial, tff_sim.Algorithm(optimizer))
    return [Contender("tff", stock, batches), Contender("pocketfed", ours, pocketfed_data)]


def batches(examples: Examples, seed: int) -> tf.data.Dataset:
    """E epochs in batches of B, shuffled by tf.data."""
    data = tf.data.Dataset.from_tensor_slices((examples.x, examples.y))
    return data.shuffle(len(examples), seed=seed).repeat(WORK.epochs).batch(WORK.batch_size)


def pocketfed_data(examples: Examples, seed: int) -> tf.data.Dataset:
    """The same work in the order that devices would take."""
    return tff_sim.client_dataset(examples, WORK, seed)


async def train(
    contender: Contender,
    clients: Mapping[str, Examples],
    plan: Planner,
    initial: Any,
    test: Any,
    rounds: int,
    out: Path,
) -> None:
    """Rounds until `rounds` are done, from wherever an earlier run ended."""
    process = contender.process
    weights = tff.learning.models.ModelWeights(trainable=list(initial), non_trainable=[])
    state = process.set_model_weights(process.initialize(), weights)
    manager = tff.program.FileProgramStateManager(out / contender.name / "state", keep_total=2, keep_first=False)
    releases = tff.program.GroupingReleaseManager(
        [
            tff.program.CSVFileReleaseManager(out / contender.name / "metrics.csv", key_fieldname="round"),
            tff.program.TensorBoardReleaseManager(out / contender.name / "events"),
        ]
    )
    saved, done = await manager.load_latest(state)
    if saved is not None:
        state = saved
        print(f"{contender.name}: goes on after round {done}")

    evaluation = tff.learning.algorithms.build_fed_eval(keras_model)
    evaluation_state = evaluation.initialize()
    for number in range(done + 1, rounds + 1):
        cohort = plan(number).reports
        data = [contender.data(clients[name], client_seed(WORK.seed, number, name)) for name in cohort]
        state = process.next(state, data).state
        evaluation_state = evaluation.set_model_weights(evaluation_state, process.get_model_weights(state))
        measured = evaluation.next(evaluation_state, test).metrics["client_work"]["eval"]["current_round_metrics"]
        # Released before it is saved: a run that dies in between measures the round again, and its row is replaced.
        await releases.release({name: measured[name] for name in ("accuracy", "loss")}, number)
        await manager.save(state, number)


def curve(path: Path) -> list[float]:
    """The accuracies of a metrics.csv, by round."""
    with path.open(newline="") as stream:
        return [float(row["accuracy"]) for row in csv.DictReader(stream)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="TFF's FedAvg and pocketfed's, side by side on the digits.")
    parser.add_argument("--rounds", type=int, default=20, help="how many there are to be in the end")
    parser.add_argument("--clients", type=int, default=20, help="how many the digits are dealt to")
    parser.add_argument("--fraction", type=float, default=0.25, help="of the clients in a round")
    parser.add_argument("--server-optimizer", default="sgd", choices=list(SERVER_OPTIMIZERS), help="of both")
    parser.add_argument("--out", type=Path, default=Path("runs/script"), help="program state and metrics")
    options = parser.parse_args(arguments)

    digits = datasets.load("digits")
    clients = partition(digits.train, "iid", options.clients, WORK.seed)
    plan = random_cohorts(list(clients), options.fraction, WORK.seed)
    initial = models.initial_weights(SPEC, WORK.seed)
    # The test set as two clients, whose metrics `tff.learning` adds up.
    halves = np.array_split(np.arange(len(digits.test)), 2)
    test = [
        tf.data.Dataset.from_tensor_slices((digits.test.x[half], digits.test.y[half])).batch(100) for half in halves
    ]

    with tff_sim.local_worker():
        for contender in contenders(initial, options.server_optimizer):
            asyncio.run(train(contender, clients, plan, initial, test, options.rounds, options.out))

    curves = {name: curve(options.out / name / "metrics.csv") for name in ("tff", "pocketfed")}
    print("round  " + "  ".join(f"{name:>9}" for name in curves))
    for number, accuracies in enumerate(zip(*curves.values(), strict=True), start=1):
        print(f"{number:5}  " + "  ".join(f"{accuracy:9.2%}" for accuracy in accuracies))


if __name__ == "__main__":
    main()
