"""`Conditions`, what the training asks, and `Measured`, which answers from probes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

NAMES = ("idle", "charging", "unmetered", "cool")


class Conditions(Protocol):
    """Asked after each training step, so cheap to ask."""

    def unmet(self) -> str | None:
        """None where the device may train now; else a short reason, such as ``on battery``."""
        ...


@dataclass(frozen=True)
class Reading:
    """What a probe has found.

    Attributes:
        value: for a person to read, such as ``71 °C``.
        unmet: why the device may not train; None where it may.
        known: whether the probe could tell; if not, `unmet` is what it could not.
    """

    value: str
    unmet: str | None = None
    known: bool = True


def unknown(what: str) -> Reading:
    """The reading of a probe that can't tell `what`."""
    return Reading("unknown", f"{what} is not known", known=False)


class Probe(Protocol):
    """One condition, measured on this device."""

    name: str
    seconds: float
    """For how long a reading holds."""

    def read(self) -> Reading:
        """Measure now; a failure is a reading too."""
        ...


class Measured:
    """Conditions that hold while each of the probes says so.

    Args:
        probes: asked in their order; a reading is kept for the probe's own number of seconds.
        train_when_unknown: whether a condition that a probe can't tell of counts as met.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        train_when_unknown: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probes = probes
        self._train_when_unknown = train_when_unknown
        self._clock = clock
        self._read: dict[str, tuple[float, Reading]] = {}

    def readings(self) -> dict[str, Reading]:
        """Each probe's reading, by name."""
        return {probe.name: self._reading(probe) for probe in self._probes}

    def unmet(self) -> str | None:
        for probe in self._probes:
            reading = self._reading(probe)
            if reading.unmet is not None and (reading.known or not self._train_when_unknown):
                return reading.unmet
        return None

    def _reading(self, probe: Probe) -> Reading:
        now = self._clock()
        if probe.name not in self._read or now >= self._read[probe.name][0]:
            self._read[probe.name] = now + probe.seconds, probe.read()
        return self._read[probe.name][1]
