"""Deadlines on a device whose clocks can't be trusted all the time, across restarts of process and device.

- The *device's clock* counts seconds since it was started, with those that it slept (Linux's CLOCK_BOOTTIME): a
  plain monotonic clock stands still while a board or a phone is suspended. It outlives a process, and not a reboot.
- The *wall clock* outlives a reboot, and may jump: many boards have none that runs without power, and start in 1970
  until the network has told them the time.

So a server says how many seconds are left, not until when; the device counts them on its own clock. What is kept for
after a restart are both clocks' readings and the identity of the device's start: within one start its clock counts,
after a reboot the wall clock does, if it has not gone back. It is a device's own way to know when trying is in vain;
whether a report counts, the server decides by its own clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST = 86_400.0
"""Seconds after which a report without a deadline is given up."""

_START = Path("/proc/sys/kernel/random/boot_id")


def device_clock() -> float:
    """Seconds since the device was started, those asleep included where the system tells them."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def device_start() -> str:
    """What tells this start of the device from any other; empty where the system does not say."""
    try:
        return _START.read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Clocks:
    """The clocks of a device; exchanged by tests."""

    device: Callable[[], float] = device_clock
    wall: Callable[[], float] = time.time
    start: Callable[[], str] = device_start


@dataclass(frozen=True)
class Deadline:
    """An instant of the device's clock; infinity for none."""

    at: float
    clocks: Clocks

    @classmethod
    def in_seconds(cls, seconds: float | None, clocks: Clocks) -> Deadline:
        """The deadline that is so many seconds from now."""
        return cls(math.inf if seconds is None else clocks.device() + seconds, clocks)

    @property
    def left(self) -> float:
        """Seconds until then; negative when it has passed."""
        return self.at - self.clocks.device()

    def to_json(self) -> dict[str, Any]:
        """For `from_json` of a later process; it is finite."""
        return {
            "left": self.left,
            "device": self.clocks.device(),
            "wall": self.clocks.wall(),
            "start": self.clocks.start(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], clocks: Clocks) -> Deadline:
        """Read what `to_json` wrote, before or after the device was started anew.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        left, device, wall = (float(value[name]) for name in ("left", "device", "wall"))
        same = value["start"] and value["start"] == clocks.start()
        gone = clocks.device() - device if same else clocks.wall() - wall
        return cls.in_seconds(left - max(gone, 0.0), clocks)
