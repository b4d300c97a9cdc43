"""Unmetered: from NetworkManager, over D-Bus with ``busctl``, or else with its own ``nmcli``."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from device_runtime.eligibility.conditions import Reading, unknown

BUSCTL = (
    "busctl", "--system", "get-property", "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager",
    "org.freedesktop.NetworkManager", "Metered",
)  # fmt: skip
NMCLI = ("nmcli", "-t", "-f", "GENERAL.METERED", "dev", "show")
_TIME_LIMIT = 2.0  # seconds

# NMMetered of NetworkManager's D-Bus interface; 0 is unknown
_METERED = {"u 1": True, "u 2": False, "u 3": True, "u 4": False}


class Network:
    """Met where NetworkManager says, or guesses, that the connection that is in use is not metered.

    Training itself uses no network, so that a reading holds for longer: a process has to be started for it.

    Args:
        environment: of the programs that are asked; this process's own by default.
    """

    name = "unmetered"
    seconds = 10.0

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = {**(os.environ if environment is None else environment), "LC_ALL": "C"}

    def read(self) -> Reading:
        metered = parse_busctl(self._output(BUSCTL))
        if metered is None:
            metered = parse_nmcli(self._output(NMCLI))
        if metered is None:
            return unknown("whether the network is metered")
        return Reading("metered", "metered network") if metered else Reading("not metered")

    def _output(self, command: Sequence[str]) -> str:
        """What the program says; nothing where there is none, it fails or takes too long."""
        try:
            run = subprocess.run(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=_TIME_LIMIT,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        return run.stdout.decode(errors="replace")


def parse_busctl(output: str) -> bool | None:
    """Whether the primary connection is metered, from the property as ``busctl get-property`` prints it."""
    return _METERED.get(output.strip())


def parse_nmcli(output: str) -> bool | None:
    """The same from a line ``GENERAL.METERED:VALUE`` for each interface: metered where one of them is."""
    values = [line.removeprefix("GENERAL.METERED:") for line in output.split() if line.startswith("GENERAL.METERED:")]
    if "yes" in values:
        return True
    return False if "no" in values else None
