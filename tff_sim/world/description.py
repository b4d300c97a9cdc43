"""What McMahan et al. 2017 leave to a deployed system (section 1, "Federated Optimization"), as numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from device_runtime.errors import InputError
from device_runtime.plain import make_plain

FAULTS = ("nan", "scaled", "sign-flipped")
_LARGEST = (2 - 2**-23) * 2.0**127  # of float32, in which updates are


@dataclass(frozen=True)
class Availability:
    """When clients are there: more often around an hour of the day that their data goes with.

    The chance to be available at hour h is ``a · exp(κ·cos(2π(h − peak)/24)) / I₀(κ)``, at most 1. Over the day
    its mean is `share`: a is the share, or more where the chance would be above 1 at some hours. The dominant labels'
    peaks are spread over the day, so that the cohorts of an hour see some labels more than others.

    Attributes:
        share: mean share of the clients that is available; 1 is everybody, always.
        concentration: κ ≥ 0 of the day's curve; 0 is the same chance at each hour.
        label_hours: the peaks of the labels are spread over so many hours; 0 is one peak for all.
        noise_hours: standard deviation of a client's peak around its label's.
        round_minutes: round r takes place r times so many minutes after midnight.
    """

    share: float = 1.0
    concentration: float = 2.0
    label_hours: float = 24.0
    noise_hours: float = 2.0
    round_minutes: float = 60.0

    def __post_init__(self) -> None:
        make_plain(self)
        _check(0 < self.share <= 1, "share", "above 0 and at most 1", self.share)
        _check(0 <= self.concentration <= 50, "concentration", "from 0 to 50", self.concentration)
        _check(0 <= self.label_hours <= 24, "label_hours", "from 0 to 24", self.label_hours)
        _check(_is_finite(self.noise_hours) and self.noise_hours >= 0, "noise_hours", "at least 0", self.noise_hours)
        _check(
            _is_finite(self.round_minutes) and self.round_minutes > 0, "round_minutes", "above 0", self.round_minutes
        )


@dataclass(frozen=True)
class Stragglers:
    """How long a report takes: examples × epochs × seconds, times the device's own factor, times the round's.

    Attributes:
        seconds_per_example: of a device of median speed.
        device_spread: σ of the log-normal factor that a device has in all rounds.
        round_spread: σ of the log-normal factor that it has in one round.
        deadline_seconds: a report after it is late and does not count; None is no deadline.
    """

    seconds_per_example: float = 0.01
    device_spread: float = 0.5
    round_spread: float = 0.25
    deadline_seconds: float | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        seconds = self.seconds_per_example
        _check(_is_finite(seconds) and seconds > 0, "seconds_per_example", "above 0", seconds)
        for name in ("device_spread", "round_spread"):
            _check(0 <= getattr(self, name) <= 10, name, "from 0 to 10", getattr(self, name))
        deadline = self.deadline_seconds
        _check(deadline is None or (_is_finite(deadline) and deadline > 0), "deadline_seconds", "above 0", deadline)


@dataclass(frozen=True)
class Faults:
    """Updates that do harm: NaN, multiplied by `scale`, or with the sign turned.

    Attributes:
        corrupt: chance of a report to be corrupt, whoever's it is.
        corrupt_kind: one of `FAULTS`.
        malicious: share of the clients that send harmful updates in all rounds.
        malicious_kind: one of `FAULTS`.
        scale: what a scaled update is multiplied by.
    """

    corrupt: float = 0.0
    corrupt_kind: str = "nan"
    malicious: float = 0.0
    malicious_kind: str = "sign-flipped"
    scale: float = 10.0

    def __post_init__(self) -> None:
        make_plain(self)
        _check(0 <= self.corrupt <= 1, "corrupt", "from 0 to 1", self.corrupt)
        _check(0 <= self.malicious <= 1, "malicious", "from 0 to 1", self.malicious)
        for name in ("corrupt_kind", "malicious_kind"):
            _check(getattr(self, name) in FAULTS, name, f"one of {', '.join(FAULTS)}", getattr(self, name))
        _check(abs(self.scale) <= _LARGEST, "scale", "finite in float32", self.scale)  # NaN is not, either

    def factor(self, kind: str) -> float:
        """What an update of this kind of fault is multiplied by."""
        return {"nan": math.nan, "scaled": self.scale, "sign-flipped": -1.0}[kind]


@dataclass(frozen=True)
class World:
    """All of it; the default is the paper's: everybody is there, in time and honest.

    Attributes:
        over_selection: so many times the cohort are selected, and the first that report make it up.
        drop_out: chance that a selected client never reports.
        availability, stragglers, faults: see there.

    Raises:
        InputError: a number is out of its range.
    """

    over_selection: float = 1.0
    drop_out: float = 0.0
    availability: Availability = field(default_factory=Availability)
    stragglers: Stragglers = field(default_factory=Stragglers)
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        make_plain(self)
        _check(1 <= self.over_selection <= 100, "over_selection", "from 1 to 100", self.over_selection)
        _check(0 <= self.drop_out <= 1, "drop_out", "from 0 to 1", self.drop_out)

    @property
    def is_ideal(self) -> bool:
        """Whether nothing of it happens: cohorts are the paper's."""
        return (
            self.over_selection == 1
            and self.drop_out == 0
            and self.availability.share == 1
            and self.stragglers.deadline_seconds is None
            and self.faults.corrupt == 0
            and self.faults.malicious == 0
        )


def _is_finite(value: float) -> bool:
    return math.isfinite(value)


def _check(holds: bool, field: str, expected: str, got: object) -> None:
    if not holds:
        raise InputError(f"world: {field} should be {expected}, not {got!r}")
