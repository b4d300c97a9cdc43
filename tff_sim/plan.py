"""Who reports in a round, and in what state: pure functions of seed and round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from device_runtime.errors import InputError


@dataclass(frozen=True)
class RoundPlan:
    """One round's cohort.

    Attributes:
        reports: name of each client whose report counts → what its delta is multiplied by. 1 is an honest client;
            anything else an update that is corrupt or malicious: NaN, −1, 10.
        counts: of those that were selected and did not report, and the like; they become columns of the metrics.
    """

    reports: Mapping[str, float]
    counts: Mapping[str, int] = field(default_factory=dict)


Planner = Callable[[int], RoundPlan]
"""Round number, from 1 → its plan."""


def honest(names: Sequence[str]) -> RoundPlan:
    """All of them report what they learned."""
    return RoundPlan(dict.fromkeys(names, 1.0))


def cohort_size(clients: int, fraction: float) -> int:
    """m = max(C·K, 1): how many of K clients make up a round."""
    return max(round(fraction * clients), 1)


def random_cohorts(clients: Sequence[str], fraction: float, seed: int) -> Planner:
    """m = max(C·K, 1) clients drawn without replacement, from a generator of the seed and the round alone.

    McMahan et al. 2017, Algorithm 1; a fraction of 0 is one client a round.

    Raises:
        InputError: the fraction is not from 0 to 1, or there are no clients.
    """
    if not 0 <= fraction <= 1:
        raise InputError(f"a cohort's fraction of the clients should be from 0 to 1, not {fraction}")
    if not len(clients):
        raise InputError("no clients to draw cohorts from: name at least one")
    size = cohort_size(len(clients), fraction)

    def plan(number: int) -> RoundPlan:
        rng = np.random.Generator(np.random.Philox(key=[seed, number]))
        return honest([clients[index] for index in rng.choice(len(clients), size, replace=False)])

    return plan
