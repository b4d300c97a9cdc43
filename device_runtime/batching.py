"""The order in which a client sees its examples: part of the protocol, and the only definition of it.

Simulation, parity check and device all call these two functions, so they take the same steps.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def epoch_order(examples: int, seed: int, epoch: int) -> Indices:
    """The permutation of ``range(examples)`` for one epoch of a client with this seed; int64 [examples].

    `Philox` is counter-based: its stream is fixed by the key on every platform and numpy version.
    """
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(examples)


def batch_indices(examples: int, batch_size: int | None, seed: int, epoch: int) -> Iterator[Indices]:
    """Cut an epoch's order into batches; the last may be smaller. A batch size of None is the whole set."""
    order = epoch_order(examples, seed, epoch)
    step = batch_size or max(examples, 1)
    for start in range(0, examples, step):
        yield order[start : start + step]
