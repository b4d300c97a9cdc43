"""Charging: from ``/sys/class/power_supply`` (Documentation/ABI/testing/sysfs-class-power of the kernel)."""

from __future__ import annotations

from pathlib import Path

from device_runtime.eligibility.conditions import Reading, unknown

_STORES = ("Battery", "UPS")
_FED = ("Charging", "Full", "Not charging")  # the last one: on a charger that holds the battery at a threshold


class Power:
    """Met where the device runs from a supply: it has no battery, or none that is being discharged.

    Batteries of peripherals (``scope`` is Device) and empty bays (``present`` is 0) do not count. A battery that says
    nothing is believed to be charged where some supply is online.

    Args:
        root: the folder, for recorded trees.
    """

    name = "charging"
    seconds = 1.0

    def __init__(self, root: Path = Path("/sys/class/power_supply")) -> None:
        self._root = root

    def read(self) -> Reading:
        batteries, supplies = [], []
        try:
            folders = sorted(self._root.iterdir())
        except OSError:  # a kernel without power supplies
            folders = []
        for folder in folders:
            kind = _text(folder / "type")
            if kind in _STORES and _text(folder / "scope") != "Device" and _text(folder / "present") != "0":
                batteries.append(folder)
            elif kind not in (*_STORES, "") and _text(folder / "online"):
                supplies.append(_text(folder / "online") != "0")  # 2 is a supply whose voltage is programmable
        if not batteries:
            return Reading("no battery")
        states = [_text(battery / "status") for battery in batteries]
        value = ", ".join(f"{b.name} {s.lower() or 'unknown'}" for b, s in zip(batteries, states, strict=True))
        if "Discharging" in states or (supplies and not any(supplies)):
            return Reading(value, "on battery")
        if any(supplies) or all(state in _FED for state in states):
            return Reading(value)
        return unknown("whether the battery is charging")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:  # no such property, or a driver that can't tell now
        return ""
