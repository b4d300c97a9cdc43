"""A whole experiment: data, partition, rounds, evaluation, results in files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import models
from device_runtime.codec import encoded_size
from device_runtime.errors import CheckFailedError, InputError
from device_runtime.tensors import TensorSpec
from device_runtime.weights import dump_weights
from device_runtime.work import ClientWork
from models.optimizers import PLAIN_SGD, ClientOptimizer
from tff_sim import datasets
from tff_sim.addresses import Workers
from tff_sim.availability import require_tff
from tff_sim.partition import partition
from tff_sim.plan import random_cohorts
from tff_sim.results import ResultFiles, RoundMetrics, summarise


@dataclass(frozen=True)
class Experiment:
    """What to simulate.

    Attributes:
        model: a name in the registry of `models`.
        dataset, data_dir: a name in `tff_sim.datasets.NAMES`, and its folder.
        partition: a name in `tff_sim.partition.PARTITIONS`.
        clients: K.
        fraction: C, the share of clients in each round; 0 is one client.
        work: E, B, η, μ, and the seed of the whole experiment.
        rounds: at most so many.
        target_accuracy: stop when the test accuracy reaches it.
        optimizer: of the clients; plain SGD by default.

    Raises:
        InputError: a number is out of its range.
    """

    model: str = "digits_mlp"
    dataset: str = "digits"
    data_dir: Path | None = None
    partition: str = "iid"
    clients: int = 100
    fraction: float = 0.1
    work: ClientWork = field(default_factory=ClientWork)
    rounds: int = 100
    target_accuracy: float | None = None
    optimizer: ClientOptimizer = PLAIN_SGD

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise InputError(f"--fraction should be from 0 to 1, not {self.fraction}")
        if self.rounds < 1:
            raise InputError(f"--rounds should be at least 1, not {self.rounds}")
        if self.target_accuracy is not None and not 0 < self.target_accuracy <= 1:
            raise InputError(f"--target-accuracy should be above 0 and at most 1, not {self.target_accuracy}")


def run_experiment(
    experiment: Experiment,
    out: Path,
    progress: Callable[[RoundMetrics], None] = lambda row: None,
    workers: Workers | None = None,
) -> dict[str, Any]:
    """Run it; the content of summary.json.

    Args:
        experiment: what to simulate.
        out: folder for metrics.csv, summary.json, accuracy.png and weights.safetensors; made if missing.
        progress: called after each round.
        workers: on other machines; without them, all is computed on this one.

    Raises:
        UnavailableError: TensorFlow Federated has no wheel for this machine.
        UnknownModelError, DatasetError, InputError: something named does not exist or is damaged.
        CheckFailedError: the training diverged; the rounds before are in the files.
        NetworkError: the workers are lost; the rounds before are in the files.
    """
    require_tff()
    spec = replace(models.get(experiment.model), optimizer=experiment.optimizer)
    data = datasets.load(experiment.dataset, experiment.data_dir)
    if spec.input.shape[1:] != data.train.x.shape[1:]:
        raise InputError(
            f"model {spec.name!r} takes examples of {tuple(spec.input.shape[1:])}, data set {data.name!r} has"
            f" {data.train.x.shape[1:]}: choose another --model or --dataset"
        )
    clients = partition(data.train, experiment.partition, experiment.clients, experiment.work.seed)
    files = ResultFiles(out)

    # TensorFlow Federated loads only here, when all that can be checked without it has been.
    from tff_sim.engine import ProcessEngine
    from tff_sim.evaluation import Evaluator
    from tff_sim.fed_avg import build_fed_avg
    from tff_sim.simulation import always, simulate
    from tff_sim.workers import computing_on

    seed, target = experiment.work.seed, experiment.target_accuracy
    model = models.seeded_model(spec, seed)
    weights = tuple(variable.numpy() for variable in models.trained_variables(model))
    tensors = [TensorSpec(name, w.shape) for name, w in zip(models.tensor_names(model), weights, strict=True)]
    upload = encoded_size(tensors, experiment.work.codec, ["loss"])
    download = len(dump_weights(weights, tensors))
    evaluate = Evaluator(spec, data.test)
    initial_accuracy = evaluate(weights).accuracy
    plan = random_cohorts(list(clients), experiment.fraction, seed)
    rows: list[RoundMetrics] = []
    engine = ProcessEngine(build_fed_avg(spec, experiment.work, weights))
    numbers = range(1, experiment.rounds + 1)
    with computing_on(workers):
        for done in simulate(engine, always(clients), always(experiment.work), plan, numbers):
            result = done.result
            if not math.isfinite(result.train_loss):
                raise CheckFailedError(
                    f"round {done.number}: the training diverged: its loss is not finite; lower --lr"
                )
            test = evaluate(result.weights)
            row = RoundMetrics(
                round=done.number,
                seconds=done.seconds,
                train_loss=result.train_loss,
                test_accuracy=test.accuracy,
                test_loss=test.loss,
                clients=result.clients,
                examples=result.examples,
                upload_bytes=upload * result.clients,
                download_bytes=download * result.clients,
            )
            rows.append(row)
            files.add(row, result.weights, tensors)
            progress(row)
            if target is not None and test.accuracy >= target:
                break
    about = {
        "codec": experiment.work.codec,
        "optimizer": experiment.optimizer.to_json(),
        "seed": seed,
        "parameters": sum(tensor.size for tensor in tensors),
        "model": spec.name,
        "dataset": data.name,
        "partition": experiment.partition,
        "clients": experiment.clients,
        "fraction": experiment.fraction,
        "epochs": experiment.work.epochs,
        "batch_size": experiment.work.batch_size,
        "learning_rate": experiment.work.learning_rate,
        "proximal": experiment.work.proximal,
    }
    summary = summarise(rows, initial_accuracy, target, about)
    files.finish(summary, [initial_accuracy, *(row.test_accuracy for row in rows)], target)
    return summary
