"""The settings of an experiment as options: each is a key of experiment.toml, whose value it takes the place of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.options import MODEL_HELP, OPTIMIZER_NAMES, BatchSize

if TYPE_CHECKING:
    from tff_sim.experiment import Experiment

_Function = TypeVar("_Function", bound=Callable[..., Any])

_PATH = click.Path(path_type=Path)
_FAULTS = click.Choice(("nan", "scaled", "sign-flipped"))


class _WrittenBatchSize(BatchSize):
    """As the file has it: a number, or the word ``all``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(value, param, ctx) or "all"


@dataclass(frozen=True)
class Setting:
    """One option.

    Attributes:
        flag: as it is typed.
        key: in experiment.toml, with its tables: ``work.epochs``.
        type: of the value; click's.
        default: as the help shows it. The experiment's own is what counts, but loading it takes seconds; a test
            compares. None is no value.
        help: a line.
    """

    flag: str
    key: str
    type: Any
    default: Any
    help: str


SECTIONS: dict[str, tuple[Setting, ...]] = {
    "Data": (
        Setting("--dataset", "data.dataset", str, "digits", "digits (embedded) or mnist."),
        Setting("--data-dir", "data.data_dir", _PATH, None, "Folder with the data set's files (IDX for mnist)."),
        Setting("--partition", "data.partition", str, "iid", "iid, or shards: two labels a client."),
        Setting("--clients", "data.clients", int, 100, "K, how many clients the data is dealt to."),
    ),
    "Training": (
        Setting("--model", "model", str, "digits_mlp", MODEL_HELP),
        Setting("--fraction", "fraction", float, 0.1, "C, the share of clients in a round; 0 is one."),
        Setting("--rounds", "rounds", int, 100, "At most so many rounds."),
        Setting("--target-accuracy", "target_accuracy", float, None, "Stop when the test accuracy reaches it."),
        Setting("--seed", "seed", int, 0, "Of everything random: the same seed, the same run."),
        Setting("--epochs", "work.epochs", int, 1, "E, passes over a client's examples."),
        Setting("--batch-size", "work.batch_size", _WrittenBatchSize(), 10, "B, or 'all' for the whole local set."),
        Setting("--lr", "work.learning_rate", float, 0.1, "Learning rate of the clients."),
        Setting("--proximal", "work.proximal", float, 0.0, "Weight of FedProx's proximal term."),
        Setting("--optimizer", "optimizer.name", click.Choice(OPTIMIZER_NAMES), "sgd", "Of the clients."),
        Setting("--momentum", "optimizer.momentum", float, 0.9, "Of the optimizer momentum."),
        Setting("--clip-norm", "optimizer.clip_norm", float, None, "Largest global norm of a gradient."),
    ),
    "The world": (
        Setting("--over-selection", "world.over_selection", float, 1.0, "Select so many times the cohort."),
        Setting("--drop-out", "world.drop_out", float, 0.0, "Chance that a selected client never reports."),
        Setting("--availability", "world.availability.share", float, 1.0, "Mean share of clients available."),
        Setting("--round-minutes", "world.availability.round_minutes", float, 60.0, "From one round to the next."),
        Setting("--deadline", "world.stragglers.deadline_seconds", float, None, "Later reports don't count, seconds."),
        Setting(
            "--seconds-per-example", "world.stragglers.seconds_per_example", float, 0.01, "Of a device of median speed."
        ),
        Setting("--corrupt", "world.faults.corrupt", float, 0.0, "Chance of a report to be corrupt."),
        Setting("--corrupt-kind", "world.faults.corrupt_kind", _FAULTS, "nan", "What corrupt updates are."),
        Setting("--malicious", "world.faults.malicious", float, 0.0, "Share of clients that mean harm."),
        Setting("--malicious-kind", "world.faults.malicious_kind", _FAULTS, "sign-flipped", "What their updates are."),
    ),
}


class SectionedCommand(click.Command):
    """A command whose help lists the settings under their sections, and its own options after them."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = {param.name: param.get_help_record(ctx) for param in self.get_params(ctx)}
        for title, settings in SECTIONS.items():
            rows = [records.pop(parameter_name(setting)) for setting in settings]
            with formatter.section(title):
                formatter.write_dl([row for row in rows if row])
        with formatter.section("Run"):
            formatter.write_dl([row for row in records.values() if row])


def parameter_name(setting: Setting) -> str:
    """Its parameter's: the key, as a word of Python."""
    return setting.key.replace(".", "__")


def experiment_options(function: _Function) -> _Function:
    """All settings, and --config; the command gets `config` and the settings that were given, see `experiment_of`."""
    for settings in reversed(SECTIONS.values()):
        for setting in reversed(settings):
            shown = "" if setting.default is None else f"  [default: {setting.default}]"
            function = click.option(
                setting.flag, parameter_name(setting), type=setting.type, default=None, help=setting.help + shown
            )(function)
    return click.option(
        "--config", type=_PATH, help="experiment.toml to start from; what is given besides takes its values' place."
    )(function)


def experiment_of(config: Path | None, settings: Mapping[str, Any]) -> Experiment:
    """The experiment that file and options describe.

    Args:
        config: the file, if any.
        settings: parameter name → value, None where the option was not given.

    Raises:
        InputError: a value is out of range, or the file is not right.
    """
    from tff_sim.experiment_file import load_experiment
    from tff_sim.settings import nested

    given = {name.replace("__", "."): value for name, value in settings.items() if value is not None}
    return load_experiment(config, nested(given))
