"""Runs an experiment: data, partition, rounds, evaluation, results and checkpoints in files."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models
from device_runtime.codec import encoded_size
from device_runtime.errors import InputError
from device_runtime.tensors import TensorSpec, Weights
from device_runtime.weights import dump_weights
from models import ModelSpec
from tff_sim.algorithms.schedules import work_of
from tff_sim.availability import require_tff
from tff_sim.errors import DivergedError
from tff_sim.experiments.checkpoint import Checkpoint, flatten_state, restore_state, write_checkpoint
from tff_sim.experiments.experiment import Experiment
from tff_sim.experiments.file import dump_experiment, experiment_tables
from tff_sim.experiments.fit import require_fit
from tff_sim.experiments.own_model import with_model
from tff_sim.experiments.results import COUNTS, ResultFiles, RoundMetrics, summarise
from tff_sim.experiments.run_folder import RunFolder, Start
from tff_sim.federated_data import FederatedData, make_population
from tff_sim.plan import Planner, cohort_size, random_cohorts
from tff_sim.world import ClientTraits, Faults, world_planner

if TYPE_CHECKING:
    from tff_sim.engines.engine import Engine
    from tff_sim.simulation import SimulatedRound
    from tff_sim.workers.addresses import Workers

Progress = Callable[[RoundMetrics], None]
BundleMaker = Callable[[ModelSpec, Path, int], Path]
"""Model, folder, seed of the initial weights → path of its bundle. Exporting is not this package's."""


def run_experiment(
    experiment: Experiment,
    out: Path | str,
    progress: Progress = lambda row: None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    workers: Workers | None = None,
    make_bundle: BundleMaker | None = None,
    own: ModelSpec | None = None,
) -> dict[str, Any]:
    """Run it; the content of summary.json.

    Args:
        experiment: what to simulate.
        out: folder for experiment.toml, metrics.csv, summary.json, pictures, TensorBoard's events,
            weights.safetensors and the checkpoint; made if missing.
        progress: called after each round.
        resume: go on with the run that is there, as if it had never been broken off; where there is none, begin.
        overwrite: begin, also where a run was broken off.
        workers: on other machines; without them, all is computed on this one.
        make_bundle: exports the model, for the engine ``device``, which needs it.
        own: a model that is in no registry, such as `export.user_model.user_spec` makes, in the place of the
            experiment's; its optimizer is the experiment's. experiment.toml says so (`Experiment.keras`).

    Raises:
        UnavailableError: TensorFlow Federated has no wheel for this machine.
        UnknownModelError, DatasetError, InputError: something named does not exist or is damaged, or the folder holds a
            run that would be lost, or another experiment's.
        DivergedError: the training diverged; the rounds before are in the files.
        NetworkError: the workers are lost; the rounds before are in the files, to go on from.
    """
    require_tff()
    if experiment.engine == "device":
        if workers is not None:
            raise InputError("--engine device trains on this machine, with the exported model: leave out --workers")
        if make_bundle is None:
            raise InputError(
                "engine 'device' needs make_bundle, which exports the model: take"
                " lambda spec, folder, seed: export.bundle_writer.export_bundle(spec, folder, seed=seed).path"
            )
    if own is not None:
        experiment = with_model(experiment, own)
    elif experiment.keras is not None:
        raise InputError(f"the experiment's model is {experiment.keras.source}: give it to run_experiment, as own")
    spec = replace(own or models.get(experiment.model), optimizer=experiment.optimizer)
    folder = RunFolder(Path(out))
    start = folder.look(experiment_tables(experiment), resume, overwrite)
    if start.summary is not None:
        return start.summary
    data = make_population(experiment.data.spec(experiment.work.seed))
    require_fit(spec, data)
    if start.checkpoint is not None:
        folder.require_data(start.checkpoint, data.identity)
    with folder.working():
        folder.begin(dump_experiment(experiment), start)
        return _Run(experiment, spec, data, folder, start, workers, make_bundle).run(progress)


@dataclass(frozen=True)
class _Run:
    experiment: Experiment
    spec: ModelSpec
    data: FederatedData
    folder: RunFolder
    start: Start
    workers: Workers | None
    make_bundle: BundleMaker | None

    def run(self, progress: Progress) -> dict[str, Any]:
        experiment, checkpoint = self.experiment, self.start.checkpoint
        rows = [] if checkpoint is None else list(checkpoint.rows)
        files = ResultFiles(self.folder.path, rows)

        # TensorFlow Federated loads only here, when all that can be checked without it has been.
        from tff_sim.experiments.evaluation import Evaluator
        from tff_sim.experiments.tensorboard import Events
        from tff_sim.simulation import simulate
        from tff_sim.workers.process import threads_for
        from tff_sim.workers.remote import computing_on

        target = experiment.target_accuracy
        initial, tensors = self._initial_weights()
        evaluate = Evaluator(self.spec, self.data.test)
        initial_accuracy = evaluate(initial).accuracy if checkpoint is None else checkpoint.initial_accuracy
        upload = encoded_size(tensors, experiment.work.codec, ["loss"])
        download = len(dump_weights(initial, tensors))
        events = Events(self.folder.path, rows)
        tables = experiment_tables(experiment)
        threads = threads_for(cohort_size(len(self.data.clients), experiment.fraction))
        with computing_on(self.workers, threads), self._engine(initial) as engine:
            state = engine.initialize()
            if checkpoint is not None:
                state = restore_state(state, checkpoint.leaves, self.folder.checkpoint)
            numbers = range(len(rows) + 1, experiment.rounds + 1)
            if _reached(rows, target):
                numbers = range(0)
            work = work_of(experiment.work, experiment.schedule)
            for done in simulate(engine, self.data.clients.at, work, self._plan(), numbers, state):
                if done.plan.reports and not math.isfinite(done.result.train_loss):
                    self.folder.give_up()
                    raise DivergedError(
                        f"round {done.number}: the training diverged: its loss is not finite; lower --lr"
                        + (", or take a robust --aggregator" if self.experiment.world.faults != Faults() else "")
                    )
                test = evaluate(done.result.weights)
                row = _row(done, len(self.data.clients), test.accuracy, test.loss, upload, download)
                rows.append(row)
                files.add(row, done.result.weights, tensors)
                events.add(row)
                write_checkpoint(
                    self.folder.checkpoint,
                    Checkpoint(
                        tables, done.number, initial_accuracy, rows, flatten_state(done.result.state),
                        self.data.identity,
                    ),
                )  # fmt: skip
                progress(row)
                if _reached([row], target):
                    break
        events.close()
        summary = summarise(rows, initial_accuracy, target, self._about(tensors))
        files.finish(summary, initial_accuracy, rows, target)
        return summary

    @contextlib.contextmanager
    def _engine(self, initial: Weights) -> Iterator[Engine]:
        from tff_sim.algorithms.fed_avg import build_fed_avg
        from tff_sim.engines.device import DeviceEngine
        from tff_sim.engines.engine import ProcessEngine
        from tff_sim.engines.shared import SharedEngine

        work, algorithm = self.experiment.work, self.experiment.algorithm
        if self.make_bundle is not None and self.experiment.engine == "device":
            with tempfile.TemporaryDirectory(prefix="pocketfed-") as folder:
                bundle = self.make_bundle(self.spec, Path(folder), work.seed)
                with DeviceEngine(bundle, work, algorithm) as engine:
                    yield engine
            return
        if self.workers is None:
            yield SharedEngine(self.spec, work, initial, algorithm)
        else:
            yield ProcessEngine(build_fed_avg(self.spec, work, initial, algorithm))

    def _initial_weights(self) -> tuple[Weights, list[TensorSpec]]:
        model = models.seeded_model(self.spec, self.experiment.work.seed)
        weights = tuple(variable.numpy() for variable in models.trained_variables(model))
        names = models.tensor_names(model)
        return weights, [TensorSpec(name, value.shape) for name, value in zip(names, weights, strict=True)]

    def _plan(self) -> Planner:
        experiment, clients = self.experiment, self.data.clients
        seed = experiment.work.seed
        if experiment.world.is_ideal:
            return random_cohorts(clients.names, experiment.fraction, seed)
        traits = ClientTraits.of(clients)
        return world_planner(experiment.world, traits, experiment.fraction, experiment.work.epochs, seed)

    def _about(self, tensors: list[TensorSpec]) -> dict[str, Any]:
        experiment = self.experiment
        return {
            "codec": experiment.work.codec,
            "engine": experiment.engine,
            "optimizer": experiment.optimizer.to_json(),
            "seed": experiment.work.seed,
            "parameters": sum(tensor.size for tensor in tensors),
            "model": self.spec.name,
            "dataset": self.data.name,
            "partition": None if self.data.partition is None else self.data.partition.scheme.name,
            "clients": len(self.data.clients),
            "fraction": experiment.fraction,
            "epochs": experiment.work.epochs,
            "batch_size": experiment.work.batch_size,
            "learning_rate": experiment.work.learning_rate,
            "proximal": experiment.work.proximal,
            "schedule": experiment.schedule.to_json(),
            "algorithm": experiment.algorithm.to_json(),
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
