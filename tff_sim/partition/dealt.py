"""`Partition`: who has which examples of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.errors import InputError
from device_runtime.examples import Examples
from tff_sim.client_names import ClientNames, ListedNames, NumberedNames
from tff_sim.datasets import Dataset
from tff_sim.label_counts import Counts, Summary, count_labels, summarise
from tff_sim.partition.schemes import Indices, Natural, Scheme
from tff_sim.partition.schemes import scheme as named

DEFAULT_CLIENTS = 100


@dataclass(frozen=True)
class Partition:
    """Who has which examples of a data set.

    Attributes:
        scheme, seed: how it was made.
        dataset: the data set's name.
        identity: of its training examples (`Examples.identity`).
        names: of the K clients.
        indices: the numbers of the training examples, client by client, int64.
        offsets: client k has indices[offsets[k]:offsets[k + 1]]; int64 [K + 1].
    """

    scheme: Scheme
    seed: int
    dataset: str
    identity: str
    names: ClientNames
    indices: Indices
    offsets: Indices

    def __len__(self) -> int:
        return len(self.names)

    def hand(self, number: int) -> Indices:
        """The numbers of a client's examples."""
        return self.indices[self.offsets[number] : self.offsets[number + 1]]

    @property
    def sizes(self) -> Indices:
        """Numbers of examples, int64 [K]."""
        return np.diff(self.offsets)

    def label_counts(self, labels: npt.NDArray[Any]) -> Counts | None:
        """How often each client has each label, int32 [K, L]; None where labels are not classes, or too many."""
        if labels.dtype.kind not in "iu" or not labels.size:
            return None
        return count_labels(self.offsets, lambda start, end: labels[self.indices[start:end]], int(labels.max()))

    def summary(self, labels: npt.NDArray[Any]) -> Summary:
        """What was made, given the labels of all training examples."""
        return summarise(self.sizes, self.label_counts(labels))

    def to_json(self) -> dict[str, Any]:
        """How it was made, and of what."""
        return {
            "scheme": self.scheme.to_json(),
            "seed": self.seed,
            "dataset": self.dataset,
            "identity": self.identity,
            "clients": len(self),
        }


def deal(dataset: Dataset, scheme: Scheme | str, clients: int | None, seed: int) -> Partition:
    """Deal a data set's training examples.

    Args:
        dataset: the data.
        scheme: how to deal them; or the name of a scheme, with its parameters' defaults.
        clients: K; None is as many as the data has natural clients, and 100 where it has none.
        seed: of what is random, at least 0; the same one deals the same hands.

    Raises:
        InputError: the data has no natural clients to deal to, or an example has not the one label that the scheme
            goes by, or there are too few or too many clients, or not as many labels as examples; or the name is not
            known, or the seed below 0.
    """
    scheme = named(scheme) if isinstance(scheme, str) else scheme
    natural = isinstance(scheme, Natural)
    if natural and dataset.owners is None:
        raise InputError(
            f"data set {dataset.name!r} has no natural clients: choose another --partition than {scheme.name!r}"
        )
    owned = 0 if dataset.owners is None else len(dataset.owners.names)
    count = clients if clients is not None else owned or DEFAULT_CLIENTS
    if natural and dataset.owners is not None:
        if not 1 <= count <= owned:
            raise InputError(f"data set {dataset.name!r} has {owned} natural clients, not {count}: change --clients")
        chosen = _natural_clients(scheme, dataset.owners.of, count, seed)
        names: ClientNames = ListedNames.of(dataset.owners.names[number] for number in chosen[1])
        return _partition(dataset, scheme, seed, names, chosen[0])
    return _partition(dataset, scheme, seed, NumberedNames(max(count, 1)), hands(dataset.train, scheme, count, seed))


def hands(examples: Examples, scheme: Scheme, clients: int, seed: int) -> list[Indices]:
    """The numbers of each client's examples, where nobody owns them by nature; else as `deal`."""
    if len(examples.y) != len(examples):
        raise InputError(f"can't deal {len(examples)} rows of x and {len(examples.y)} of y; expected as many of both")
    if scheme.needs_classes and (examples.y.ndim != 1 or examples.y.dtype.kind not in "iu"):
        raise InputError(
            f"partition {scheme.name!r} goes by one label an example, and here an example has"
            f" {examples.y.dtype} {examples.y.shape[1:]}: choose another --partition"
        )
    pieces = scheme.pieces(clients)
    if not 1 <= pieces <= len(examples):
        raise InputError(
            f"can't deal {len(examples)} examples to {clients} clients by {scheme.name!r}: change --clients"
        )
    return scheme.deal(examples.y, clients, _random(seed))


def _natural_clients(
    scheme: Scheme, owners: npt.NDArray[np.int32], clients: int, seed: int
) -> tuple[list[Indices], list[int]]:
    dealt = scheme.deal(owners, clients, _random(seed))
    return dealt, [int(owners[hand[0]]) for hand in dealt]


def _random(seed: int) -> np.random.Generator:
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"seed should be a whole number of at least 0, not {seed!r}")
    return np.random.Generator(np.random.Philox(seed))


def _partition(dataset: Dataset, scheme: Scheme, seed: int, names: ClientNames, dealt: Sequence[Indices]) -> Partition:
    offsets = np.zeros(len(dealt) + 1, np.int64)
    np.cumsum([len(hand) for hand in dealt], out=offsets[1:])
    return Partition(
        scheme, seed, dataset.name, dataset.train.identity, names, np.concatenate(dealt).astype(np.int64), offsets
    )
