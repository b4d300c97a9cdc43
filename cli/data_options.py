"""The options that say which data an experiment has and how clients have it; `simulate` and `data` share them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tff_sim.federated_data import DataSpec

# Help loads no NumPy, and the packages with these names do: so they stand here once more, and a test compares.
DATASET_NAMES = (
    *("digits", "mnist", "fashion-mnist", "kmnist"),
    *("emnist-balanced", "emnist-byclass", "emnist-bymerge", "emnist-digits", "emnist-letters", "emnist-mnist"),
    *("cifar10", "shakespeare", "leaf", "npz", "packed"),
)
PARTITION_NAMES = ("iid", "shards", "dirichlet", "log-normal", "power-law", "natural")


@dataclass(frozen=True)
class DataOptions:
    """What `data_options` were given; each None or False where it was not."""

    dataset: str
    data_dir: Path | None
    partition: str | None
    clients: int | None
    shards_per_client: int | None
    alpha: float | None
    sigma: float | None
    exponent: float | None
    partition_file: Path | None
    present: float | None = None
    added: float | None = None
    deleted: float | None = None
    augment: bool = False

    def spec(self, seed: int) -> DataSpec:
        """What they say.

        Raises:
            InputError: a value is out of its range, or options do not go together.
        """
        from device_runtime.errors import InputError
        from tff_sim.federated_data import DataSpec
        from tff_sim.partition import scheme
        from tff_sim.population import Growth

        parameters = {
            name: getattr(self, name)
            for name in ("shards_per_client", "alpha", "sigma", "exponent")
            if getattr(self, name) is not None
        }
        if self.partition_file is not None and (self.partition or self.clients is not None or parameters):
            raise InputError(
                f"{self.partition_file}: a partition's file says who has what: leave out --partition, its parameters"
                " and --clients"
            )
        if parameters and self.partition is None:
            option = "--" + next(iter(parameters)).replace("_", "-")
            raise InputError(f"{option} is a parameter of a partition: name that with --partition")
        changes = {
            name: getattr(self, name) for name in ("present", "added", "deleted") if getattr(self, name) is not None
        }
        return DataSpec(
            dataset=self.dataset,
            data_dir=self.data_dir,
            scheme=None if self.partition is None else scheme(self.partition, **parameters),
            clients=self.clients,
            partition_file=self.partition_file,
            growth=Growth(**changes) if changes else None,
            augment=self.augment,
            seed=seed,
        )


_WHO = [
    click.option("--dataset", default="digits", show_default=True, metavar="NAME", help=", ".join(DATASET_NAMES) + "."),
    click.option("--data-dir", type=click.Path(path_type=Path), help="Folder with the data set's files."),
    click.option(
        "--partition",
        metavar="NAME",
        help=f"{', '.join(PARTITION_NAMES)}; by default natural where the data has natural clients, else iid.",
    ),
    click.option("--clients", type=int, help="K; by default as many as the data's natural clients, or 100."),
    click.option("--shards-per-client", type=int, help="Of shards: how many a client gets; by default 2."),
    click.option("--alpha", type=float, help="Of dirichlet: small is far from IID; by default 0.5."),
    click.option("--sigma", type=float, help="Of log-normal: of the logarithm of sizes; by default 1."),
    click.option("--exponent", type=float, help="Of power-law: how fast sizes fall; by default 1."),
    click.option(
        "--partition-file", type=click.Path(path_type=Path), help="A partition that 'pocketfed data partition' made."
    ),
]
_CHANGES = [
    click.option("--present", type=float, help="Share of a client's examples that exist in round 1; by default all."),
    click.option("--added", type=float, help="Probability of a missing example to be added in the next round."),
    click.option("--deleted", type=float, help="Probability of an example to be deleted in the next round."),
    click.option("--augment", is_flag=True, help="Of cifar10: random crops, anew for each client and round."),
]


def data_options(changes: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: the command gets all of them as one argument, `data`, a `DataOptions`.

    Args:
        changes: with the options of what changes between rounds.
    """
    options = [*_WHO, *(_CHANGES if changes else [])]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(**given: Any) -> Any:
            own = {field.name: given.pop(field.name) for field in fields(DataOptions) if field.name in given}
            return function(data=DataOptions(**own), **given)

        for option in reversed(options):
            command = option(command)
        return command

    return decorate
