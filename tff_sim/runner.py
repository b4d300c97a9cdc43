"""Runs an experiment: data, partition, rounds, evaluation, results and checkpoints in files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import models
from device_runtime.codec import encoded_size
from device_runtime.errors import CheckFailedError, InputError
from device_runtime.examples import Examples
from device_runtime.tensors import TensorSpec, Weights
from device_runtime.weights import dump_weights
from models import ModelSpec
from tff_sim import datasets
from tff_sim.availability import require_tff
from tff_sim.checkpoint import Checkpoint, flatten_state, restore_state, write_checkpoint
from tff_sim.experiment import Experiment
from tff_sim.experiment_file import dump_experiment, experiment_tables
from tff_sim.partition import partition
from tff_sim.plan import Planner, random_cohorts
from tff_sim.results import COUNTS, ResultFiles, RoundMetrics, summarise
from tff_sim.run_folder import RunFolder, Start
from tff_sim.world import Population, world_planner

if TYPE_CHECKING:
    from tff_sim.datasets import Dataset
    from tff_sim.engine import Engine
    from tff_sim.simulation import SimulatedRound

Progress = Callable[[RoundMetrics], None]


def run_experiment(
    experiment: Experiment,
    out: Path,
    progress: Progress = lambda row: None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Run it; the content of summary.json.

    Args:
        experiment: what to simulate.
        out: folder for experiment.toml, metrics.csv, summary.json, pictures, TensorBoard's events,
            weights.safetensors and the checkpoint; made if missing.
        progress: called after each round.
        resume: go on with the run that is there, as if it had never been broken off; where there is none, begin.
        overwrite: begin, also where a run was broken off.

    Raises:
        UnavailableError: TensorFlow Federated has no wheel for this machine.
        UnknownModelError, DatasetError, InputError: something named does not exist or is damaged, or the folder holds a
            run that would be lost, or another experiment's.
        CheckFailedError: the training diverged; the rounds before are in the files.
    """
    require_tff()
    spec = replace(models.get(experiment.model), optimizer=experiment.optimizer)
    folder = RunFolder(out)
    start = folder.look(experiment_tables(experiment), resume, overwrite)
    if start.summary is not None:
        return start.summary
    data = datasets.load(experiment.data.dataset, experiment.data.data_dir)
    if spec.input.shape[1:] != data.train.x.shape[1:]:
        raise InputError(
            f"model {spec.name!r} takes examples of {tuple(spec.input.shape[1:])}, data set {data.name!r} has"
            f" {data.train.x.shape[1:]}: choose another --model or --dataset"
        )
    clients = partition(data.train, experiment.data.partition, experiment.data.clients, experiment.work.seed)
    with folder.working():
        folder.begin(dump_experiment(experiment), start)
        return _Run(experiment, spec, data, clients, folder, start).run(progress)


@dataclass(frozen=True)
class _Run:
    experiment: Experiment
    spec: ModelSpec
    data: Dataset
    clients: Mapping[str, Examples]
    folder: RunFolder
    start: Start

    def run(self, progress: Progress) -> dict[str, Any]:
        experiment, checkpoint = self.experiment, self.start.checkpoint
        rows = [] if checkpoint is None else [RoundMetrics.of_cells(row) for row in checkpoint.rows]
        files = ResultFiles(self.folder.path, rows)

        # TensorFlow Federated loads only here, when all that can be checked without it has been.
        from tff_sim.engine import ProcessEngine
        from tff_sim.evaluation import Evaluator
        from tff_sim.fed_avg import build_fed_avg
        from tff_sim.simulation import always, simulate
        from tff_sim.tensorboard import Events
        from tff_sim.worker import local_worker

        target = experiment.target_accuracy
        initial, tensors = self._initial_weights()
        evaluate = Evaluator(self.spec, self.data.test)
        initial_accuracy = evaluate(initial).accuracy if checkpoint is None else checkpoint.initial_accuracy
        upload = encoded_size(tensors, experiment.work.codec, ["loss"])
        download = len(dump_weights(initial, tensors))
        engine: Engine = ProcessEngine(build_fed_avg(self.spec, experiment.work, initial))
        events = Events(self.folder.path, rows)
        tables = experiment_tables(experiment)
        with local_worker():
            state = engine.initialize()
            if checkpoint is not None:
                state = restore_state(state, checkpoint.leaves, self.folder.checkpoint)
            numbers = range(len(rows) + 1, experiment.rounds + 1)
            if _reached(rows, target):
                numbers = range(0)
            for done in simulate(engine, always(self.clients), always(experiment.work), self._plan(), numbers, state):
                if done.plan.reports and not math.isfinite(done.result.train_loss):
                    self.folder.give_up()
                    raise CheckFailedError(
                        f"round {done.number}: the training diverged: its loss is not finite; lower --lr"
                    )
                test = evaluate(done.result.weights)
                row = _row(done, len(self.clients), test.accuracy, test.loss, upload, download)
                rows.append(row)
                files.add(row, done.result.weights, tensors)
                events.add(row)
                write_checkpoint(
                    self.folder.checkpoint,
                    Checkpoint(
                        tables, done.number, initial_accuracy, [row.cells() for row in rows],
                        flatten_state(done.result.state),
                    ),
                )  # fmt: skip
                progress(row)
                if _reached([row], target):
                    break
        events.close()
        summary = summarise(rows, initial_accuracy, target, self._about(tensors))
        files.finish(summary, initial_accuracy, rows, target)
        return summary

    def _initial_weights(self) -> tuple[Weights, list[TensorSpec]]:
        model = models.seeded_model(self.spec, self.experiment.work.seed)
        weights = tuple(variable.numpy() for variable in models.trained_variables(model))
        names = models.tensor_names(model)
        return weights, [TensorSpec(name, value.shape) for name, value in zip(names, weights, strict=True)]

    def _plan(self) -> Planner:
        experiment, names = self.experiment, list(self.clients)
        seed = experiment.work.seed
        if experiment.world.is_ideal:
            return random_cohorts(names, experiment.fraction, seed)
        return world_planner(
            experiment.world, _population(self.clients), experiment.fraction, experiment.work.epochs, seed
        )

    def _about(self, tensors: list[TensorSpec]) -> dict[str, Any]:
        experiment = self.experiment
        return {
            "codec": experiment.work.codec,
            "optimizer": experiment.optimizer.to_json(),
            "seed": experiment.work.seed,
            "parameters": sum(tensor.size for tensor in tensors),
            "model": self.spec.name,
            "dataset": self.data.name,
            "partition": experiment.data.partition,
            "clients": len(self.clients),
            "fraction": experiment.fraction,
            "epochs": experiment.work.epochs,
            "batch_size": experiment.work.batch_size,
            "learning_rate": experiment.work.learning_rate,
            "proximal": experiment.work.proximal,
            "experiment": experiment_tables(experiment),
        }


def _reached(rows: list[RoundMetrics], target: float | None) -> bool:
    return target is not None and any(row.test_accuracy >= target for row in rows)


def _row(done: SimulatedRound, clients: int, accuracy: float, loss: float, upload: int, download: int) -> RoundMetrics:
    planned, result = done.plan, done.result
    reports = len(planned.reports)
    ideal = dict.fromkeys(COUNTS, 0) | {"available": clients, "selected": reports}
    counts = {**ideal, **planned.counts, **result.counts}
    # What comes late or after the goal was sent as well.
    sent = reports + counts["late"] + counts["surplus"]
    return RoundMetrics(
        round=done.number,
        seconds=done.seconds,
        train_loss=result.train_loss,
        test_accuracy=accuracy,
        test_loss=loss,
        clients=result.clients,
        examples=result.examples,
        upload_bytes=upload * sent,
        download_bytes=download * counts["selected"],
        counts=counts,
    )


def _population(clients: Mapping[str, Examples]) -> Population:
    """What the world knows of clients whose examples are in memory."""
    labels = [np.ravel(examples.y) for examples in clients.values()]
    has_classes = all(np.issubdtype(values.dtype, np.integer) for values in labels)
    dominant = [int(np.bincount(values).argmax()) if has_classes else -1 for values in labels]
    return Population(
        list(clients),
        np.array([len(examples) for examples in clients.values()]),
        np.array(dominant),
        1 + max((int(values.max()) for values in labels), default=0) if has_classes else 0,
    )
