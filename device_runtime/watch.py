"""Whether a device may go on with what it does: its habits, and the look at them between steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from device_runtime.bundle import Manifest
from device_runtime.deadline import Deadline
from device_runtime.eligibility.conditions import Conditions
from device_runtime.errors import InputError
from device_runtime.limits import Limits, over_memory
from device_runtime.progress import SavePolicy


@dataclass(frozen=True)
class Habits:
    """How a device works.

    Attributes:
        threads: of the interpreter.
        save: when a training's progress is saved.
        limits: on memory and on seconds of work a round.
        conditions: when it may work; None is always.
        conditions_seconds: between two looks at conditions that are not met, or for examples where there are none.
        error_feedback: whether what an update's encoding lost is added to the next.
    """

    threads: int = 1
    save: SavePolicy = field(default_factory=SavePolicy)
    limits: Limits = field(default_factory=Limits)
    conditions: Conditions | None = None
    conditions_seconds: float = 5.0
    error_feedback: bool = False


class GivenUpError(Exception):
    """This device ends its part in the round; the message says why."""


class Watch:
    """Looks at conditions, deadlines and limits.

    Args:
        habits: of the device.
        notice: told of what it waits for.
        sleep: exchanged by tests.
    """

    def __init__(self, habits: Habits, notice: Callable[..., None], sleep: Callable[[float], None]) -> None:
        self._habits = habits
        self._notice = notice
        self._sleep = sleep

    def unmet(self) -> str | None:
        """Why the device may not work now; None where it may."""
        return None if self._habits.conditions is None else self._habits.conditions.unmet()

    def require_time(self, seconds: float, deadline: Deadline) -> None:
        """Go on only if the deadline has not passed, nor `seconds` of work the limit.

        Raises:
            GivenUpError: one of them has.
        """
        if deadline.left < 0:
            raise GivenUpError("the deadline passed during the work")
        limit = self._habits.limits.seconds
        if limit is not None and seconds > limit:
            raise GivenUpError(f"the work took longer than --max-seconds allows, {limit:g}")

    def require_memory(self, manifest: Manifest) -> None:
        """Go on only if the process holds no more than the limit.

        Raises:
            InputError: it does.
        """
        if over_memory(self._habits.limits):
            raise InputError(
                f"bundle {manifest.name!r}: the work took more memory than --max-memory allows; name more,"
                " or have the task use smaller batches"
            )

    def wait_while(self, reason_to_wait: Callable[[], str | None], deadline: Deadline | None = None) -> None:
        """Wait until there is no reason to any more.

        Raises:
            GivenUpError: the deadline comes first.
        """
        told = None
        while (reason := reason_to_wait()) is not None:
            if deadline is not None and deadline.left < 0:
                raise GivenUpError("the deadline passed during the work")
            if reason != told:
                self._notice("waiting", reason=reason)
                told = reason
            self._sleep(self._habits.conditions_seconds)
