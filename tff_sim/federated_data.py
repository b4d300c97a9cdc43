"""`make_population`: from what is said on the command line, or in a file, to clients and test examples."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from device_runtime.errors import InputError
from device_runtime.examples import Examples
from device_runtime.plain import make_plain
from device_runtime.tensors import identity_of, sha256
from tff_sim import datasets
from tff_sim.datasets import PACKED, Dataset, cifar10
from tff_sim.partition import Partition, Scheme, deal
from tff_sim.partition.file import load_partition
from tff_sim.partition.schemes import Iid, Natural
from tff_sim.population import DealtPopulation, GrowingPopulation, Growth, Population, StoredPopulation
from tff_sim.population.augmented import AugmentedPopulation


@dataclass(frozen=True)
class DataSpec:
    """Which data, and how clients have it.

    Attributes:
        dataset: one of `tff_sim.datasets.NAMES`, or ``packed``, a population on disk.
        data_dir: its folder; ``digits`` needs none.
        scheme: how it is dealt; None is by its natural clients where it has some, IID where it has none.
        clients: K; None is as many as the data has natural clients, and 100 where it has none.
        partition_file: a partition from `pocketfed data partition`, in the place of scheme, clients and seed.
        growth: examples that come and go between rounds; None where nothing does.
        augment: for ``cifar10``, crops at random for each client and round in the place of central ones.
        seed: of what is random.
    """

    dataset: str = "digits"
    data_dir: Path | None = None
    scheme: Scheme | None = None
    clients: int | None = None
    partition_file: Path | None = None
    growth: Growth | None = None
    augment: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        make_plain(self, paths=("data_dir", "partition_file"))


@dataclass(frozen=True)
class FederatedData:
    """Clients, and what the global model is tested with.

    Attributes:
        name: the data set's.
        clients: call `clients.at(round)` for those of a round.
        test: the test examples.
        partition: of the training examples; None where the data comes as a population.
        about: what was made, for a summary: dataset, partition, clients, growth, augment.
    """

    name: str
    clients: Population
    test: Examples
    partition: Partition | None
    about: dict[str, Any]

    @cached_property
    def identity(self) -> str:
        """SHA-256 of what a run goes on with: who has which training examples, and the test examples.

        A population on disk, more than a minute's reading, has it written down; where one of an earlier version has
        not, names and numbers stand for the training examples.
        """
        parts = [self.test.identity, identity_of(self.clients.names.array(), self.clients.sizes)]
        if self.partition is not None:
            parts += [self.partition.identity, identity_of(self.partition.indices)]
        elif self.clients.identity is not None:
            parts.append(self.clients.identity)
        return sha256("".join(parts).encode())


def make_population(spec: DataSpec) -> FederatedData:
    """Load, deal, and change between rounds, as said.

    Raises:
        DatasetError, InputError: something does not exist, is damaged, or does not go together.
    """
    name, clients, test, partition = _stored(spec) if spec.dataset == PACKED else _dealt(spec)
    if spec.augment:
        clients = AugmentedPopulation(clients, spec.seed)
    if spec.growth is not None:
        clients = GrowingPopulation(clients, spec.growth, spec.seed)
    about = {
        "dataset": name,
        "partition": None if partition is None else partition.to_json(),
        "clients": len(clients),
        "growth": None if spec.growth is None else asdict(spec.growth),
        "augment": spec.augment,
    }
    return FederatedData(name, clients, test, partition, about)


def make_partition(spec: DataSpec) -> tuple[Dataset, Partition]:
    """The data set, and the partition of it that is said.

    Raises:
        DatasetError, InputError: as `make_population`.
    """
    if spec.dataset == PACKED:
        raise InputError(f"data set {PACKED!r} has its clients already: there is nothing to deal")
    if spec.augment and spec.dataset != "cifar10":
        raise InputError(f"--augment is for data set 'cifar10', not {spec.dataset!r}: leave it out")
    data = datasets.load(spec.dataset, spec.data_dir)  # also where it is augmented: identities are of what models take
    if spec.partition_file is not None:
        return data, load_partition(spec.partition_file, data)
    scheme = spec.scheme or (Iid() if data.owners is None else Natural())
    return data, deal(data, scheme, spec.clients, spec.seed)


def _dealt(spec: DataSpec) -> tuple[str, Population, Examples, Partition]:
    data, partition = make_partition(spec)
    train = cifar10.load_raw(spec.data_dir).train if spec.augment and spec.data_dir is not None else data.train
    return data.name, DealtPopulation(train, partition), data.test, partition


def _stored(spec: DataSpec) -> tuple[str, Population, Examples, None]:
    if spec.data_dir is None:
        raise InputError(f"data set {PACKED!r}: --data-dir is missing; it names the folder of a population")
    if spec.partition_file is not None or not isinstance(spec.scheme, Natural | None):
        raise InputError(f"data set {PACKED!r} has its clients already: leave out --partition and --partition-file")
    if spec.augment:
        raise InputError(f"--augment is for data set 'cifar10', not {PACKED!r}: leave it out")
    clients = StoredPopulation(spec.data_dir)
    if spec.clients is not None and spec.clients != len(clients):
        raise InputError(f"{spec.data_dir}: has {len(clients)} clients, not {spec.clients}: leave out --clients")
    test = clients.test()
    if test is None:
        raise InputError(f"{spec.data_dir}: has no examples to test with: write it with some")
    return clients.description.name, clients, test, None
