"""The options that say which data an experiment has and how clients have it; `simulate` and `data` share them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cli.settings import Setting, given, setting_options

# Help loads no NumPy, and the packages with these names do: so they stand here once more, and a test compares.
DATASET_NAMES = (
    *("digits", "mnist", "fashion-mnist", "kmnist"),
    *("emnist-balanced", "emnist-byclass", "emnist-bymerge", "emnist-digits", "emnist-letters", "emnist-mnist"),
    *("cifar10", "shakespeare", "shakespeare-lines", "leaf", "npz", "packed"),
)
PARTITION_NAMES = ("iid", "shards", "dirichlet", "log-normal", "power-law", "natural")

_PATH = click.Path(path_type=Path)
_PARTITION_HELP = f"{', '.join(PARTITION_NAMES)}; by default natural where the data has natural clients, else iid."
WHO_HAS_WHAT = (
    Setting("--dataset", "data.dataset", str, "digits", ", ".join(DATASET_NAMES) + "."),
    Setting("--data-dir", "data.data_dir", _PATH, None, "Folder with the data set's files."),
    Setting("--partition", "data.partition", str, None, _PARTITION_HELP),
    Setting("--clients", "data.clients", int, None, "K; by default as many as there are natural clients, or 100."),
    Setting("--shards-per-client", "data.shards_per_client", int, None, "Of shards: a client's; by default 2."),
    Setting("--alpha", "data.alpha", float, None, "Of dirichlet: small is far from IID; by default 0.5."),
    Setting("--sigma", "data.sigma", float, None, "Of log-normal: of the logarithm of sizes; by default 1."),
    Setting("--exponent", "data.exponent", float, None, "Of power-law: how fast sizes fall; by default 1."),
    Setting("--partition-file", "data.partition_file", _PATH, None, "One that 'pocketfed data partition' made."),
)
CHANGES = (
    Setting("--present", "data.present", float, None, "Share of a client's examples that exist in round 1."),
    Setting("--added", "data.added", float, None, "Probability of a missing example to be added in a round."),
    Setting("--deleted", "data.deleted", float, None, "Probability of an example to be deleted in a round."),
    Setting("--augment", "data.augment", bool, False, "Of cifar10: random crops, anew for each client and round."),
)


def data_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The command gets those of `WHO_HAS_WHAT` as one argument, `data`, a `tff_sim.experiments.data_settings.Data`."""

    @functools.wraps(function)
    def command(**values: Any) -> Any:
        from tff_sim.experiments.data_settings import Data

        own = {setting.parameter: values.pop(setting.parameter) for setting in WHO_HAS_WHAT}
        said = {key.removeprefix("data."): value for key, value in given(WHO_HAS_WHAT, own).items()}
        return function(data=Data(**said), **values)

    return setting_options(WHO_HAS_WHAT)(command)
