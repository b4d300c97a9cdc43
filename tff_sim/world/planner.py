"""The world as a planner: who reports in a round, from seed and round alone.

Whatever is random comes from a generator of its own, so that a world with one more trouble has the same of the others:
a Philox whose key is seed and round, and whose counter's last word says what it is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tff_sim.plan import Planner, RoundPlan, cohort_size
from tff_sim.population import Population
from tff_sim.world.description import Availability, Faults, World

# What a generator is for. The first, 0, is `tff_sim.plan.random_cohorts`'s: the selection.
_SELECTION, _PRESENCE, _DROP_OUT, _DURATION, _CORRUPTION, _PEAK, _DEVICE, _MALICE = range(8)
_ALWAYS = 0  # no round: what a client has for good
_MINUTES = 24 * 60


@dataclass(frozen=True)
class ClientTraits:
    """What the world knows of the clients; arrays, for there may be very many of them.

    Attributes:
        names: K of them.
        sizes: given a round and numbers of clients, how many examples each of them has in it.
        labels: int [K], the label that most of a client's examples have; None where labels are not classes.
        classes: how many labels there are.
    """

    names: Sequence[str]
    sizes: Callable[[int, npt.NDArray[np.int64]], npt.NDArray[np.int64]]
    labels: npt.NDArray[np.int64] | None
    classes: int = 0

    @classmethod
    def of(cls, population: Population) -> ClientTraits:
        """Those of a population."""
        counts = population.label_counts
        labels, classes = (None, 0) if counts is None else (counts.argmax(axis=1), counts.shape[1])

        def sizes(round_number: int, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            return population.at(round_number).sizes_now(numbers)

        return cls(population.names, sizes, labels, classes)


def world_planner(world: World, clients: ClientTraits, fraction: float, epochs: int, seed: int) -> Planner:
    """Plans of rounds in this world.

    A round's goal are m = max(C·K, 1) reports. Clients are drawn from those available, `over_selection`·m of them; of
    those that neither drop out nor are late, the first m count. Where fewer come, it is those; maybe none.

    Its plans count ``available``, ``selected``, ``dropped_out``, ``late``, ``surplus`` (in time, but after the goal),
    ``corrupt`` and ``malicious`` (of those that count).

    Args:
        world: what may happen.
        clients: K of them.
        fraction: C; 0 is one client.
        epochs: E, for the time that a client needs.
        seed: of all that is random.
    """
    count, goal = len(clients.names), cohort_size(len(clients.names), fraction)
    wanted = math.ceil(world.over_selection * goal - 1e-9)
    peaks = _peaks(world, clients, seed)
    level = _level(world.availability)
    stragglers = world.stragglers
    device_factor = np.exp(stragglers.device_spread * _generator(seed, _ALWAYS, _DEVICE).standard_normal(count))
    per_example = stragglers.seconds_per_example * epochs * device_factor
    malicious = np.zeros(count, bool)
    malicious[_generator(seed, _ALWAYS, _MALICE).permutation(count)[: round(world.faults.malicious * count)]] = True

    def plan(number: int) -> RoundPlan:
        available = _available(world, level, peaks, count, number, seed)
        chosen = _generator(seed, number, _SELECTION).choice(len(available), min(wanted, len(available)), replace=False)
        selected = available[chosen]
        stays = _generator(seed, number, _DROP_OUT).random(len(selected)) >= world.drop_out
        noise = _generator(seed, number, _DURATION).standard_normal(len(selected))
        seconds = per_example[selected] * clients.sizes(number, selected)
        durations = seconds * np.exp(stragglers.round_spread * noise)
        deadline = stragglers.deadline_seconds
        in_time = stays & (durations <= (math.inf if deadline is None else deadline))
        order = np.argsort(durations, kind="stable")
        reporting = selected[order][in_time[order]]
        counted = reporting[:goal]
        corrupt = _generator(seed, number, _CORRUPTION).random(len(counted)) < world.faults.corrupt
        factors = _factors(world.faults, malicious[counted], corrupt)
        return RoundPlan(
            {clients.names[client]: factor for client, factor in zip(counted.tolist(), factors, strict=True)},
            {
                "available": len(available),
                "selected": len(selected),
                "dropped_out": int((~stays).sum()),
                "late": int((stays & ~in_time).sum()),
                "surplus": len(reporting) - len(counted),
                "corrupt": int(corrupt.sum()),
                "malicious": int(malicious[counted].sum()),
            },
        )

    return plan


def _generator(seed: int, number: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, number], counter=[0, 0, 0, purpose]))


def _peaks(world: World, clients: ClientTraits, seed: int) -> npt.NDArray[np.float64]:
    """The hour at which each client is most likely there; of no label: any hour."""
    rng = _generator(seed, _ALWAYS, _PEAK)
    count, availability = len(clients.names), world.availability
    if clients.labels is None:
        return 24 * rng.random(count)
    noise = availability.noise_hours * rng.standard_normal(count)
    hours = clients.labels.astype(np.float64) * (availability.label_hours / clients.classes)
    peaks: npt.NDArray[np.float64] = np.remainder(hours + noise, 24.0)
    return peaks


def _available(
    world: World, level: float, peaks: npt.NDArray[np.float64], count: int, number: int, seed: int
) -> npt.NDArray[np.int64]:
    availability = world.availability
    if availability.share == 1:
        return np.arange(count)
    hour = number * availability.round_minutes / 60
    chance = _chances(level, availability.concentration, hour - peaks)
    return np.flatnonzero(_generator(seed, number, _PRESENCE).random(count) < chance)


def _chances(level: float, kappa: float, hours: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The chance to be there so many hours after the peak; above 1 is 1."""
    chances: npt.NDArray[np.float64] = level * np.exp(kappa * np.cos(hours * (2 * math.pi / 24))) / np.i0(kappa)
    return chances


def _level(availability: Availability) -> float:
    """The `level` of `_chances` whose mean over the day is the share, though none counts for more than 1."""
    share, day = availability.share, np.arange(_MINUTES) / 60
    if share == 1:
        return share  # everybody, which no level reaches
    curve = _chances(1.0, availability.concentration, day)
    if share * curve[0] <= 1:
        return share  # the curve's own mean is 1
    low, high = share, 1 / float(curve.min())
    for _ in range(100):  # a factor of e**100 is halved, as a power, until it is 1 to the last bit
        middle = math.sqrt(low * high)
        if np.minimum(middle * curve, 1).mean() < share:
            low = middle
        else:
            high = middle
    return high


def _factors(faults: Faults, malicious: npt.NDArray[np.bool_], corrupt: npt.NDArray[np.bool_]) -> list[float]:
    factors = np.where(malicious, faults.factor(faults.malicious_kind), 1.0)
    result: list[float] = np.where(corrupt, faults.factor(faults.corrupt_kind), factors).tolist()
    return result
