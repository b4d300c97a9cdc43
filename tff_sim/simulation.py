"""Rounds of Federated Averaging over named clients: cohorts, seeds and weights, without any files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from device_runtime.examples import Examples
from device_runtime.tensors import Weights
from device_runtime.work import ClientWork, client_seed
from tff_sim.client_data import client_dataset

Cohort = Callable[[int], Sequence[str]]
"""Round number → names of the clients that take part."""


@dataclass(frozen=True)
class SimulatedRound:
    """One finished round.

    Attributes:
        number: counts from 1.
        weights: the global weights after it.
        train_loss: mean loss over all examples of all local steps.
        clients, examples: of the cohort.
        seconds: what the round took, client data included, evaluation not.
    """

    number: int
    weights: Weights
    train_loss: float
    clients: int
    examples: int
    seconds: float


def random_cohorts(clients: Sequence[str], fraction: float, seed: int) -> Cohort:
    """m = max(C·K, 1) clients drawn without replacement, from a generator of the seed and the round alone.

    McMahan et al. 2017, Algorithm 1; a fraction of 0 is one client a round.
    """
    size = max(round(fraction * len(clients)), 1)

    def cohort(number: int) -> list[str]:
        rng = np.random.Generator(np.random.Philox(key=[seed, number]))
        return [clients[index] for index in rng.choice(len(clients), size, replace=False)]

    return cohort


def simulate(
    process: Any, clients: Mapping[str, Examples], work: ClientWork, cohort: Cohort, rounds: int
) -> Iterator[SimulatedRound]:
    """Run rounds from the process's initial weights, within `tff_sim.local_worker()`; yields each as it ends.

    Args:
        process: from `tff_sim.build_fed_avg` with the same work.
        clients: name → local examples; names seed the order of the batches as they do on devices.
        work: its epochs and seed, the experiment's, give the order of the batches.
        cohort: who takes part in which round.
        rounds: how many.
    """
    state = process.initialize()
    for number in range(1, rounds + 1):
        started = time.perf_counter()
        data = [
            client_dataset(clients[name], work.epochs, client_seed(work.seed, number, name)) for name in cohort(number)
        ]
        output = process.next(state, data)
        state = output.state
        weights = tuple(np.asarray(value) for value in process.get_model_weights(state).trainable)
        measured = output.metrics["client_work"]
        yield SimulatedRound(
            number=number,
            weights=weights,
            train_loss=float(measured["loss"]),
            clients=int(measured["clients"]),
            examples=int(measured["examples"]),
            seconds=time.perf_counter() - started,
        )
