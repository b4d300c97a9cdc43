"""The settings of an experiment as options: each is a key of experiment.toml, whose value it takes the place of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.data_options import CHANGES, WHO_HAS_WHAT
from cli.options import MODEL_HELP, OPTIMIZER_NAMES, BatchSize
from cli.settings import Setting, given, setting_options

if TYPE_CHECKING:
    from models import ModelSpec
    from tff_sim.experiments.experiment import Experiment

_Function = TypeVar("_Function", bound=Callable[..., Any])

_PATH = click.Path(path_type=Path)
# Help loads no NumPy, and the modules with these names do: so they stand here once more, and a test compares.
SCHEDULES = ("constant", "exponential", "step", "cosine")
SERVER_OPTIMIZERS = ("sgd", "momentum", "fedadagrad", "fedadam", "fedyogi")
AGGREGATORS = ("mean", "median", "trimmed_mean")
WEIGHTINGS = ("examples", "uniform")
CODECS = ("f32", "f16", "q8", "q4", "q2", "q1")
ENGINES = ("tff", "device")
FAULTS = ("nan", "scaled", "sign-flipped")


class _WrittenBatchSize(BatchSize):
    """As the file has it: a number, or the word ``all``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(value, param, ctx) or "all"


_TRAINING = (
    Setting("--model", "model", str, "digits_mlp", MODEL_HELP),
    Setting("--keras", "keras.source", str, None, "A model of your own, FILE.keras or MODULE:FUNCTION."),
    Setting("--loss", "keras.loss", str, None, "Of your own model, such as sparse_categorical_crossentropy."),
    Setting("--fraction", "fraction", float, 0.1, "C, the share of clients in a round; 0 is one."),
    Setting("--rounds", "rounds", int, 100, "At most so many rounds."),
    Setting("--target-accuracy", "target_accuracy", float, None, "Stop when the test accuracy reaches it."),
    Setting("--seed", "seed", int, 0, "Of everything random: the same seed, the same run."),
    Setting("--epochs", "work.epochs", int, 1, "E, passes over a client's examples."),
    Setting("--batch-size", "work.batch_size", _WrittenBatchSize(), 10, "B, or 'all' for the whole local set."),
    Setting("--lr", "work.learning_rate", float, 0.1, "Learning rate of the clients."),
    Setting("--lr-schedule", "schedule.name", click.Choice(SCHEDULES), "constant", "Of --lr over the rounds."),
    Setting("--lr-decay", "schedule.decay", float, None, "Factor of exponential (0.99) and step (0.1)."),
    Setting("--lr-decay-rounds", "schedule.decay_rounds", int, None, "Rounds a factor: exponential 1, step 100."),
    Setting("--lr-final", "schedule.final", float, None, "Of cosine: what is left of --lr at the end; 0.01."),
    Setting("--lr-rounds", "schedule.rounds", int, None, "Of cosine: when it is at its end; by default --rounds."),
    Setting("--lr-warmup", "schedule.warmup", int, 0, "Rounds in which --lr grows to its full value."),
    Setting("--proximal", "work.proximal", float, 0.0, "Weight of FedProx's proximal term."),
    Setting("--optimizer", "optimizer.name", click.Choice(OPTIMIZER_NAMES), "sgd", "Of the clients."),
    Setting("--momentum", "optimizer.momentum", float, 0.9, "Of the optimizer momentum."),
    Setting("--clip-norm", "optimizer.clip_norm", float, None, "Largest global norm of a gradient."),
    Setting("--codec", "work.codec", click.Choice(CODECS), "f32", "Of the updates, as a device sends them."),
    Setting("--engine", "engine", click.Choice(ENGINES), "tff", "device: clients run the exported artifact."),
)
_SERVER = (
    Setting("--server-optimizer", "algorithm.optimizer.name", click.Choice(SERVER_OPTIMIZERS), "sgd", "Of the server."),
    Setting("--server-lr", "algorithm.optimizer.learning_rate", float, None, "By default 1; of the adaptive 0.01."),
    Setting("--server-momentum", "algorithm.optimizer.momentum", float, None, "Of momentum; by default 0.9."),
    Setting("--server-beta1", "algorithm.optimizer.beta_1", float, None, "Decay of the adaptive's first moment."),
    Setting("--server-beta2", "algorithm.optimizer.beta_2", float, None, "Decay of the adaptive's second moment."),
    Setting("--server-tau", "algorithm.optimizer.tau", float, None, "Of the adaptive; by default 0.001."),
    Setting("--aggregator", "algorithm.aggregator", click.Choice(AGGREGATORS), "mean", "Of the clients' deltas."),
    Setting("--weighting", "algorithm.weighting", click.Choice(WEIGHTINGS), None, "Of the mean; by examples."),
    Setting("--trim", "algorithm.trim", float, None, "Of trimmed_mean: share left out at each end; 0.1."),
    Setting("--clip-update", "algorithm.clip_norm", float, None, "Largest norm of a delta; a longer one is scaled."),
    Setting("--zero-update", "algorithm.zero_norm", float, None, "A delta of a larger norm does not count."),
)
_WORLD = (
    Setting("--over-selection", "world.over_selection", float, 1.0, "Select so many times the cohort."),
    Setting("--drop-out", "world.drop_out", float, 0.0, "Chance that a selected client never reports."),
    Setting("--availability", "world.availability.share", float, 1.0, "Mean share of clients available."),
    Setting("--concentration", "world.availability.concentration", float, 2.0, "How much one hour exceeds others."),
    Setting("--label-hours", "world.availability.label_hours", float, 24.0, "Over which labels' peaks are spread."),
    Setting("--noise-hours", "world.availability.noise_hours", float, 2.0, "Of a client's peak around its label's."),
    Setting("--round-minutes", "world.availability.round_minutes", float, 60.0, "From one round to the next."),
    Setting("--deadline", "world.stragglers.deadline_seconds", float, None, "Later reports don't count, seconds."),
    Setting("--seconds-per-example", "world.stragglers.seconds_per_example", float, 0.01, "Of the median device."),
    Setting("--device-spread", "world.stragglers.device_spread", float, 0.5, "Of devices' times, log-normal: σ."),
    Setting("--round-spread", "world.stragglers.round_spread", float, 0.25, "Of a device's times in rounds: σ."),
    Setting("--corrupt", "world.faults.corrupt", float, 0.0, "Chance of a report to be corrupt."),
    Setting("--corrupt-kind", "world.faults.corrupt_kind", click.Choice(FAULTS), "nan", "What it then is."),
    Setting("--malicious", "world.faults.malicious", float, 0.0, "Share of clients that mean harm."),
    Setting("--malicious-kind", "world.faults.malicious_kind", click.Choice(FAULTS), "sign-flipped", "What they send."),
    Setting("--fault-scale", "world.faults.scale", float, 10.0, "Factor of a scaled update."),
)
# Key → what its option has no effect without: how the experiment shows that, and the option.
_GOES_WITH: dict[str, tuple[Callable[[Experiment], bool], str]] = {
    "data.added": (lambda e: e.data.present is not None or bool(e.data.deleted), "--present or --deleted"),
    "keras.loss": (lambda e: e.keras is not None, "--keras"),
    "optimizer.momentum": (lambda e: e.optimizer.name == "momentum", "--optimizer momentum"),
    **dict.fromkeys(
        [f"world.availability.{name}" for name in ("concentration", "label_hours", "noise_hours", "round_minutes")],
        (lambda e: e.world.availability.share < 1, "--availability"),
    ),
    **dict.fromkeys(
        [f"world.stragglers.{name}" for name in ("seconds_per_example", "device_spread", "round_spread")],
        (
            lambda e: e.world.stragglers.deadline_seconds is not None or e.world.over_selection > 1,
            "--deadline or --over-selection",
        ),
    ),
    "world.faults.corrupt_kind": (lambda e: e.world.faults.corrupt > 0, "--corrupt"),
    "world.faults.malicious_kind": (lambda e: e.world.faults.malicious > 0, "--malicious"),
    "world.faults.scale": (
        lambda e: "scaled" in (e.world.faults.corrupt_kind, e.world.faults.malicious_kind),
        "--corrupt-kind scaled or --malicious-kind scaled",
    ),
}
SECTIONS = {"Data": (*WHO_HAS_WHAT, *CHANGES), "Training": _TRAINING, "The server": _SERVER, "The world": _WORLD}
ALL = tuple(setting for settings in SECTIONS.values() for setting in settings)


class SectionedCommand(click.Command):
    """A command whose help lists the settings under their sections, and its own options after them."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = {param.name: param.get_help_record(ctx) for param in self.get_params(ctx)}
        for title, settings in SECTIONS.items():
            rows = [records.pop(setting.parameter, None) for setting in settings]
            with formatter.section(title):
                formatter.write_dl([row for row in rows if row])
        with formatter.section("Run"):
            formatter.write_dl([row for row in records.values() if row])


def experiment_options(without: Iterable[str] = ()) -> Callable[[_Function], _Function]:
    """All settings but some, and --config; the command gets `config` and the settings' parameters: `experiment_of`."""
    excluded = set(without)

    def decorate(function: _Function) -> _Function:
        config = click.option(
            "--config",
            type=_PATH,
            help="experiment.toml to start from; what is given besides takes its values' place, with the word none also"
            " that of an optional one.",
        )
        settings = [setting for setting in ALL if setting.flag not in excluded]
        return config(setting_options(settings, over_file=True)(function))

    return decorate


def experiment_of(config: Path | None, settings: Mapping[str, Any]) -> Experiment:
    """The experiment that file and options describe.

    Args:
        config: the file, if any.
        settings: parameter name → value, None where the option was not given.

    Raises:
        InputError: a value is out of range, an option has no effect without another one, or the file is not right.
    """
    from device_runtime.errors import InputError
    from tff_sim.experiments.file import load_experiment
    from tff_sim.experiments.settings import nested

    said = given(ALL, dict(settings))
    experiment = load_experiment(config, nested(said), {setting.key: setting.flag for setting in ALL})
    for setting in ALL:
        if setting.key in said and setting.key in _GOES_WITH:
            holds, other = _GOES_WITH[setting.key]
            if not holds(experiment):
                raise InputError(f"{setting.flag} has no effect without {other}: leave it out, or give that too")
    return experiment


def own_model(experiment: Experiment) -> ModelSpec | None:
    """The user's own model that the experiment names, if it does.

    Raises:
        InputError: it can't be loaded, or is not one that a device could train.
    """
    own = experiment.keras
    if own is None:
        return None
    from export.user_model import user_spec

    return user_spec(own.source, own.loss, experiment.model or None, name_option="--model")


def export_for_engine(spec: ModelSpec, folder: Path, seed: int) -> Path:
    """Export a model for ``--engine device``; the bundle's path."""
    from export.bundle_writer import export_bundle

    return export_bundle(spec, folder, seed=seed).path
