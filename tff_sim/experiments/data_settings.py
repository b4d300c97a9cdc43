"""`Data`: which data an experiment has and how clients have it, as plain values. Loads no NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.errors import InputError
from device_runtime.plain import make_plain

if TYPE_CHECKING:
    from tff_sim.federated_data import DataSpec

_PARAMETERS = ("shards_per_client", "alpha", "sigma", "exponent")
_CHANGES = ("present", "added", "deleted")


@dataclass(frozen=True)
class Data:
    """What the command line and experiment.toml say of the data; what is None is left to the data set.

    Attributes:
        dataset, data_dir: a name in `tff_sim.datasets.NAMES` or ``packed``, and its folder.
        partition: a name in `tff_sim.partition.SCHEMES`; None is by natural clients where there are some, else IID.
        clients: K; None is as many as the data has natural clients, or 100.
        shards_per_client, alpha, sigma, exponent: parameters of partitions.
        partition_file: a partition that was saved, in the place of all these.
        present, added, deleted: how clients' examples change; see `tff_sim.population.Growth`.
        augment: of ``cifar10``, random crops.
    """

    dataset: str = "digits"
    data_dir: Path | None = None
    partition: str | None = None
    clients: int | None = None
    shards_per_client: int | None = None
    alpha: float | None = None
    sigma: float | None = None
    exponent: float | None = None
    partition_file: Path | None = None
    present: float | None = None
    added: float | None = None
    deleted: float | None = None
    augment: bool = False

    def __post_init__(self) -> None:
        make_plain(self, paths=("data_dir", "partition_file"))

    def spec(self, seed: int) -> DataSpec:
        """What `tff_sim.federated_data.make_population` makes of it.

        Raises:
            InputError: a value is out of its range, or two do not go together.
        """
        from tff_sim.federated_data import DataSpec
        from tff_sim.partition import scheme
        from tff_sim.population import Growth

        parameters = {name: getattr(self, name) for name in _PARAMETERS if getattr(self, name) is not None}
        if self.partition_file is not None and (self.partition or self.clients is not None or parameters):
            raise InputError(
                f"{self.partition_file}: a partition's file says who has what: leave out --partition, its parameters"
                " and --clients"
            )
        if parameters and self.partition is None:
            option = "--" + next(iter(parameters)).replace("_", "-")
            raise InputError(f"{option} is a parameter of a partition: name that with --partition")
        changes = {name: getattr(self, name) for name in _CHANGES if getattr(self, name) is not None}
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
