"""Idle: how much of the processors others use, from ``/proc/stat`` (proc(5)).

The load average would be the obvious measure, but the training itself makes load, and the average is a damped one, over
a minute: what of it is one's own can't be told, and somebody who comes back would be seen late. The counters of
``/proc/stat`` can be subtracted exactly: between two readings, others have used the busy time of all processors minus
this process's own processor time, which the kernel counts over all its threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from device_runtime.eligibility.conditions import Reading, unknown

_PAIR_SECONDS = 0.25  # between two readings, where there is none that is recent
_RECENT_SECONDS = 5.0


class Load:
    """Met where other processes use at most a share of the processors.

    Waiting for a disk is idle time, and so is time that a hypervisor gave to others.

    Args:
        limit: the share, from 0 to 1, of all processors that are online.
        stat: the file, for recorded ones.
        own: processor seconds that this process has used, in all its threads.
        clock, sleep: exchanged by tests.
    """

    name = "idle"
    seconds = 1.0

    def __init__(
        self,
        limit: float,
        stat: Path = Path("/proc/stat"),
        own: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._limit = limit
        self._stat = stat
        self._own = own
        self._clock = clock
        self._sleep = sleep
        self._before: tuple[float, float] | None = None

    def read(self) -> Reading:
        try:
            if self._before is None or self._clock() - self._before[1] > _RECENT_SECONDS:
                self._before = self._others()[0], self._clock()
                self._sleep(_PAIR_SECONDS)
            (used, processors), now = self._others(), self._clock()
        except (OSError, ValueError, LookupError):
            return unknown("the load")
        (before, then), self._before = self._before, (used, now)
        # Ticks are coarse, and own time is not: over a short while the difference can fall below zero.
        load = max(0.0, (used - before) / (now - then)) if now > then else 0.0
        value = f"load {load:.1f} on {processors} processor{'s' if processors > 1 else ''}"
        return Reading(value, f"busy: {value}" if load > self._limit * processors else None)

    def _others(self) -> tuple[float, int]:
        """Processor seconds that others have used since the start of the system, and the number of processors."""
        lines = [line.split() for line in self._stat.read_text(encoding="ascii").splitlines()]
        fields = {line[0]: line[1:] for line in lines if line and line[0].startswith("cpu")}
        user, nice, system, _idle, _iowait, irq, softirq = map(int, fields.pop("cpu")[:7])
        if not fields:
            raise ValueError("no processor")
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - self._own(), len(fields)
