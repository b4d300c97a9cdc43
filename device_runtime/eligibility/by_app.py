"""Conditions that an app sets: on a phone, where the system tells the app and nobody else."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from device_runtime.eligibility.conditions import NAMES

_REASONS = {"idle": "in use", "charging": "on battery", "unmetered": "metered network", "cool": "too hot"}
_LARGEST = 1 << 16  # bytes of a file of conditions
_SECONDS = 1.0  # for which what a file says holds


class SetByApp:
    """Conditions that the app sets in this process, from any thread; none is met until it says so.

        conditions = SetByApp()
        conditions.set(charging=True, unmetered=True)

    Args:
        required: those that have to be met, of `NAMES`.
    """

    def __init__(self, required: Collection[str] = NAMES) -> None:
        self._required = [name for name in NAMES if name in required]
        self._met = dict.fromkeys(NAMES, False)
        self._lock = threading.Lock()

    def set(
        self,
        *,
        idle: bool | None = None,
        charging: bool | None = None,
        unmetered: bool | None = None,
        cool: bool | None = None,
    ) -> None:
        """Say of some conditions whether they are met, all at once for whoever asks; None leaves one as it is."""
        given = {"idle": idle, "charging": charging, "unmetered": unmetered, "cool": cool}
        with self._lock:
            self._met.update({name: value for name, value in given.items() if value is not None})

    def unmet(self) -> str | None:
        with self._lock:
            return next((_REASONS[name] for name in self._required if not self._met[name]), None)


class ConditionsFile:
    """Conditions that an app writes to a file: a JSON object of some of `NAMES` with true or false.

    The app writes another file beside it and renames it over this one, so that nobody reads half of it. Whatever is not
    said is not met, and nothing is where the file is missing or something else; the reason says so.

    Args:
        path: the file.
        required: those that have to be met.
        clock: seconds that only grow.
    """

    def __init__(
        self, path: Path, required: Collection[str] = NAMES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._required = [name for name in NAMES if name in required]
        self._clock = clock
        self._until: float | None = None
        self._unmet: str | None = None

    def unmet(self) -> str | None:
        now = self._clock()
        if self._until is None or now >= self._until:
            self._until, self._unmet = now + _SECONDS, self._look()
        return self._unmet

    def read(self) -> dict[str, bool] | str:
        """What the file says, or why it says nothing."""
        try:
            with self._path.open("rb") as file:
                data = file.read(_LARGEST + 1)
        except OSError as error:
            return f"{self._path}: {error.strerror}"
        try:
            value = json.loads(data) if len(data) <= _LARGEST else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or not all(isinstance(value.get(name, True), bool) for name in NAMES):
            return f'{self._path}: expected a JSON object such as {{"{NAMES[0]}": true}}'
        return {name: value[name] for name in NAMES if name in value}

    def _look(self) -> str | None:
        met = self.read()
        if isinstance(met, str):
            return met
        return next((_REASONS[name] for name in self._required if not met.get(name, False)), None)
