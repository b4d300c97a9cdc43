"""How a data set is dealt to clients: the recipes of McMahan et al. 2017, section 3."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from device_runtime.errors import InputError
from device_runtime.examples import Examples

Indices = npt.NDArray[np.int64]
SHARDS_A_CLIENT = 2


def iid(labels: npt.NDArray[np.int32], clients: int, rng: np.random.Generator) -> list[Indices]:
    """Shuffle, and deal evenly; sizes differ by one at the most."""
    return np.array_split(rng.permutation(len(labels)), clients)


def shards(labels: npt.NDArray[np.int32], clients: int, rng: np.random.Generator) -> list[Indices]:
    """Sort by label, cut into twice as many shards as clients, and deal each client two at random.

    Most clients see two labels only: the paper's pathological non-IID partition.
    """
    pieces = np.array_split(np.argsort(labels, kind="stable"), SHARDS_A_CLIENT * clients)
    dealt = rng.permutation(len(pieces)).reshape(clients, SHARDS_A_CLIENT)
    return [np.concatenate([pieces[piece] for piece in hand]) for hand in dealt]


PARTITIONS: dict[str, Callable[[npt.NDArray[np.int32], int, np.random.Generator], list[Indices]]] = {
    "iid": iid,
    "shards": shards,
}


def partition(examples: Examples, name: str, clients: int, seed: int) -> dict[str, Examples]:
    """Deal `examples` to clients named ``client-000``, ``client-001``, …

    Args:
        examples: the training set, n examples.
        name: one of `PARTITIONS`.
        clients: K; at least 1, and few enough that each gets an example.
        seed: of the shuffle; the same seed deals the same hands.

    Raises:
        InputError: the name is not known, or there are too few or too many clients.
    """
    if name not in PARTITIONS:
        raise InputError(f"unknown partition {name!r}; known partitions: {', '.join(PARTITIONS)}")
    pieces = clients * (SHARDS_A_CLIENT if name == "shards" else 1)
    if not 1 <= pieces <= len(examples):
        raise InputError(f"can't deal {len(examples)} examples to {clients} clients by {name!r}: change --clients")
    hands = PARTITIONS[name](examples.y, clients, np.random.Generator(np.random.Philox(seed)))
    return client_names([Examples(examples.x[hand], examples.y[hand]) for hand in hands])


def client_names(hands: Sequence[Examples]) -> dict[str, Examples]:
    """Number the hands: the names are those under which devices check in and from which seeds follow."""
    width = max(3, len(str(len(hands) - 1)))
    return {f"client-{index:0{width}d}": hand for index, hand in enumerate(hands)}
