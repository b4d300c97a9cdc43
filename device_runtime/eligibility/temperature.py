"""Cool enough: from ``/sys/class/thermal`` (Documentation/driver-api/thermal/sysfs-api.rst of the kernel)."""

from __future__ import annotations

from pathlib import Path

from device_runtime.eligibility.conditions import Reading, unknown

_PLAUSIBLE = range(-60_000, 250_000)  # what a sensor that is off says, lies outside


class Temperature:
    """Met where the hottest thermal zone is at most at the limit.

    Args:
        limit: degrees Celsius.
        root: the folder, for recorded trees.
    """

    name = "cool"
    seconds = 1.0

    def __init__(self, limit: float, root: Path = Path("/sys/class/thermal")) -> None:
        self._limit = limit
        self._root = root

    def read(self) -> Reading:
        zones = [
            t for zone in self._root.glob("thermal_zone*") for t in _millidegrees(zone / "temp") if t in _PLAUSIBLE
        ]
        if not zones:
            return unknown("the temperature")
        celsius = max(zones) / 1000
        value = f"{celsius:.0f} °C"
        return Reading(value, f"too hot: {value}" if celsius > self._limit else None)


def _millidegrees(path: Path) -> list[int]:
    try:
        return [int(path.read_text(encoding="ascii"))]
    except (OSError, ValueError):  # a sensor that is asleep or broken
        return []
