"""TensorFlow Federated's own `tff.simulation.datasets.ClientData` as a population."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.errors import InputError
from device_runtime.examples import Examples
from device_runtime.tensors import is_finite
from tff_sim.client_names import ClientNames, ListedNames
from tff_sim.datasets.dataset import device_names
from tff_sim.label_counts import MOST_LABELS, Counts
from tff_sim.population.base import Population

_BATCH = 4096  # examples that are taken out of a tf.data.Dataset in one go


class ClientDataPopulation(Population):
    """See `from_client_data`."""

    def __init__(
        self, client_data: Any, x: str | int, y: str | int, prepare: Callable[[Examples], Examples] | None
    ) -> None:
        self._data = client_data
        self._keys = (x, y)
        self._prepare = prepare
        self._ids: list[str] = list(client_data.client_ids)
        if not self._ids:
            raise InputError("a ClientData without clients is no population")
        self._names = ListedNames.of(device_names(self._ids))

    @property
    def names(self) -> ClientNames:
        return self._names

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        return self._table[0]

    @property
    def label_counts(self) -> Counts | None:
        return self._table[1]

    def examples(self, number: int) -> Examples:
        name = self._ids[number]
        batches = list(self._data.create_tf_dataset_for_client(name).batch(_BATCH).as_numpy_iterator())
        if not batches:
            raise InputError(f"client {name!r} of the ClientData has no examples: leave it out of it")
        try:
            x, y = (np.concatenate([np.asarray(batch[key]) for batch in batches]) for key in self._keys)
        except (KeyError, IndexError, TypeError):
            known = ", ".join(map(repr, batches[0])) if isinstance(batches[0], dict) else "no names"
            raise InputError(
                f"client {name!r}: no {self._keys[0]!r} or {self._keys[1]!r} in its examples, which have {known}"
            ) from None
        found = Examples(x, y)
        if self._prepare:
            found = self._prepare(found)
        if not (is_finite(found.x) and is_finite(found.y)):
            raise InputError(f"client {name!r} of the ClientData has values that are not finite: leave those out of it")
        return found

    @cached_property
    def _table(self) -> tuple[npt.NDArray[np.int64], Counts | None]:
        """One pass over everybody's examples; kept are numbers of examples, and of labels where they are classes."""
        sizes, rows = [], []
        for number in range(len(self)):
            labels = self.examples(number).y
            sizes.append(len(labels))
            classes = labels.dtype.kind in "iu" and labels.min() >= 0 and labels.max() < MOST_LABELS
            rows.append(np.bincount(labels.reshape(-1)) if classes else None)
        if any(row is None for row in rows):
            return np.array(sizes), None
        counts = np.zeros((len(rows), max(len(row) for row in rows if row is not None)), np.int32)
        for number, row in enumerate(rows):
            assert row is not None
            counts[number, : len(row)] = row
        return np.array(sizes), counts


def from_client_data(
    client_data: Any,
    x: str | int = 0,
    y: str | int = 1,
    prepare: Callable[[Examples], Examples] | None = None,
) -> Population:
    """A population of a `tff.simulation.datasets.ClientData`.

    Clients are named as devices may be, in the order of `client_ids`: what the protocol does not allow becomes ``_``.
    A client's examples are taken from its `tf.data.Dataset` when they are asked for. Numbers of examples and labels
    take one pass over everything, when they are first asked for; `write_population` makes that once and for all.

    Args:
        client_data: the object; a client's dataset gives single examples, not batches.
        x, y: the key of features and of labels in an example: ``"pixels"`` and ``"label"`` for TFF's EMNIST, numbers
            where examples are tuples.
        prepare: makes what the model takes of all of a client's examples; for EMNIST, for instance,
            ``lambda found: Examples(found.x[..., None], found.y)``.

    Raises:
        InputError: there are no clients; later, that a client has no examples, none of these keys, or values that are
            not finite.
    """
    return ClientDataPopulation(client_data, x, y, prepare)
