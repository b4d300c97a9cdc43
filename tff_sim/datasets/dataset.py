"""`Dataset`: train and test examples of one task, and, where the data has them, its natural clients."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from device_runtime.examples import Examples
from device_runtime.tensors import describe
from tff_sim.errors import DatasetError

_LONGEST = 64  # of a name on the wire (`device_runtime.messages`)


@dataclass(frozen=True)
class Owners:
    """Whose each training example is by nature: a writer's, a role's, a device's.

    Attributes:
        names: of the K clients, as devices check in with: letters, digits, ``-``, ``_`` and ``.``.
        of: the number of its client for each of the n training examples, int32 [n].
    """

    names: tuple[str, ...]
    of: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Dataset:
    """Examples to deal to clients, and examples to test the global model with.

    Attributes:
        name: the loader's name.
        train, test: features [n, …] and labels [n, …] as models take them, each float32 or int32.
        owners: of the training examples; None where the data has no natural clients.
    """

    name: str
    train: Examples
    test: Examples
    owners: Owners | None = None


def owned(name: str, clients: Mapping[str, Examples], test: Examples) -> Dataset:
    """A data set of natural clients: the training examples of one after the other.

    Args:
        name: of the data set.
        clients: name in the data → at least one example; all of the same types and shapes.
        test: for the global model.
    """
    sizes = [len(examples) for examples in clients.values()]
    owners = Owners(device_names(clients), np.repeat(np.arange(len(sizes), dtype=np.int32), sizes))
    return Dataset(name, joined(clients.values()), test, owners)


def joined(parts: Iterable[Examples]) -> Examples:
    """All examples of at least one part, in order."""
    parts = list(parts)
    return Examples(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))


def require_alike(where: str, part: Examples, first_where: str, first: Examples, among: str) -> None:
    """`DatasetError` unless types and shapes of an example are those of the first part.

    Args:
        where, part: the part, and the file that it is of.
        first_where, first: the first one, which is "in" a file or "of" a user.
        among: what all of them are: files, users.
    """
    for name in ("x", "y"):
        found, wanted = getattr(part, name), getattr(first, name)
        if found.dtype != wanted.dtype or found.shape[1:] != wanted.shape[1:]:
            raise DatasetError(
                f"{where}: {name} is {describe(found)}, {first_where} {describe(wanted)};"
                f" expected the same type and shape in all {among}"
            )


def device_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names in the data as names of devices: what the protocol does not allow becomes ``_``.

    ``First Citizen`` is ``First_Citizen``. Where two become the same, the later gets ``-2``, ``-3`` and so on.
    """
    taken: dict[str, None] = {}
    for name in names:
        # Neither a hidden file nor a parent folder, when a client's examples are written to a file of its name.
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip("._")[:_LONGEST] or "client"
        unique, number = plain, 2
        while unique in taken:
            ending = f"-{number}"
            unique, number = plain[: _LONGEST - len(ending)] + ending, number + 1
        taken[unique] = None
    return tuple(taken)
