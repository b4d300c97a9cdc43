"""Rounds of Federated Averaging over named clients: cohorts, seeds and weights, without any files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from device_runtime.examples import Examples
from device_runtime.work import ClientWork, client_seed
from tff_sim.engines.engine import ClientTask, Engine, EngineRound, global_weights
from tff_sim.plan import Planner, RoundPlan

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class SimulatedRound:
    """One finished round.

    Attributes:
        number: counts from 1.
        plan: who was to report.
        result: what came of it.
        seconds: what the round took, client data included, evaluation not.
    """

    number: int
    plan: RoundPlan
    result: EngineRound
    seconds: float


def always(value: _Value) -> Callable[[int], _Value]:
    """The same in every round."""
    return lambda number: value


def simulate(
    engine: Engine,
    clients: Callable[[int], Mapping[str, Examples]],
    work: Callable[[int], ClientWork],
    plan: Planner,
    rounds: Iterable[int],
    state: object = None,
) -> Iterator[SimulatedRound]:
    """Run rounds, and yield each as it ends. Where nobody reports, the state stays as it is, and the loss is NaN.

    Args:
        engine: carries them out.
        clients: round → name → local examples; names seed the order of the batches as they do on devices.
        work: round → what its clients are asked to do; its seed is the experiment's.
        plan: round → who takes part.
        rounds: their numbers, such as ``range(1, 101)``.
        state: the server's before the first of them; None begins with the engine's initial weights.
    """
    if state is None:
        state = engine.initialize()
    for number in rounds:
        started = time.perf_counter()
        asked, planned, local = work(number), plan(number), clients(number)
        tasks = [
            ClientTask(name, local[name], client_seed(asked.seed, number, name), factor)
            for name, factor in planned.reports.items()
        ]
        result = engine.round(state, asked, tasks) if tasks else _nothing(state)
        state = result.state
        yield SimulatedRound(number, planned, result, time.perf_counter() - started)


def _nothing(state: object) -> EngineRound:
    return EngineRound(state, global_weights(state), math.nan, clients=0, examples=0)
