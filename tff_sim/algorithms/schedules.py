"""The clients' learning rate over the rounds. Loads no TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from device_runtime.errors import InputError
from device_runtime.plain import make_plain
from device_runtime.work import ClientWork
from tff_sim.algorithms.checks import check_choice, check_goes_with, check_number, check_whole

SCHEDULES: Mapping[str, Mapping[str, float]] = {
    "constant": {},
    "exponential": {"decay": 0.99, "decay_rounds": 1},
    "step": {"decay": 0.1, "decay_rounds": 100},
    "cosine": {"final": 0.01},
}
"""Name → its parameters, and what they are unless said otherwise."""

_OPTIONS = {"decay": "--lr-decay", "decay_rounds": "--lr-decay-rounds", "final": "--lr-final"}
_SMALLEST = 2.0**-126  # of float32's normal numbers: a learning rate stays above 0, however long it decays


@dataclass(frozen=True)
class Schedule:
    """What the learning rate of `ClientWork` is multiplied by in each round; 1 in all by default.

    With t = 0, 1, … the number of rounds since the end of the warm-up, a factor is

    - ``constant``: 1
    - ``exponential``: decay^(t / decay_rounds)
    - ``step``: decay^⌊t / decay_rounds⌋
    - ``cosine``: final + (1 − final)·(1 + cos(π·t / T))/2, with T such that it is `final` in round `rounds`, and after
      it (Loshchilov and Hutter 2017)

    and in the W rounds of a warm-up 1/(W + 1), 2/(W + 1), … W/(W + 1) (Goyal et al. 2017).

    Attributes:
        name: one of these.
        decay: above 0 and at most 1; None is 0.99 for ``exponential`` and 0.1 for ``step``.
        decay_rounds: at least 1; None is 1 for ``exponential`` and 100 for ``step``.
        final: above 0 and at most 1, for ``cosine``; None is 0.01.
        rounds: the one in which ``cosine``, which needs it, is at its end, counted with those of the warm-up.
        warmup: W, rounds of linear warm-up; 0 is none.

    Raises:
        InputError: a value is out of range, or one that this schedule does not have; the message names an option of the
            command line.
    """

    name: str = "constant"
    decay: float | None = None
    decay_rounds: int | None = None
    final: float | None = None
    rounds: int | None = None
    warmup: int = 0

    def __post_init__(self) -> None:
        make_plain(self)
        check_choice("--lr-schedule", self.name, SCHEDULES)
        for parameter, option in _OPTIONS.items():
            value = getattr(self, parameter)
            if value is None:
                continue
            check_goes_with(option, parameter, "--lr-schedule", self.name, SCHEDULES)
            if parameter == "decay_rounds":
                check_whole(option, value, 1)
            else:
                check_number(option, value, lambda number: 0 < number <= 1, "above 0 and at most 1")
        check_whole("--lr-warmup", self.warmup, 0)
        if self.name != "cosine":
            if self.rounds is not None:
                raise InputError(
                    f"--lr-rounds does not go with --lr-schedule {self.name}: leave it out, or choose cosine"
                )
            return
        if self.rounds is None:
            raise InputError("--lr-schedule cosine needs --lr-rounds, the number of rounds until its end")
        check_whole("--lr-rounds", self.rounds, 1)
        if self.warmup >= self.rounds:
            raise InputError(f"--lr-warmup should be below --lr-rounds, {self.rounds}, not {self.warmup}")

    def factor(self, number: int) -> float:
        """In the round with this number, from 1; above 0 and at most 1.

        Raises:
            InputError: the number is below 1.
        """
        if number < 1:
            raise InputError(f"a schedule's rounds count from 1, not {number}: range(1, rounds + 1)")
        if number <= self.warmup:
            return number / (self.warmup + 1)
        since = number - self.warmup - 1
        if self.name == "cosine":
            assert self.rounds is not None
            last = self.rounds - self.warmup - 1
            turned = math.cos(math.pi * min(since / last, 1.0)) if last else 1.0
            final = self._value("final")
            return final + (1 - final) * (1 + turned) / 2
        if self.name == "constant":
            return 1.0
        passed = since / self._value("decay_rounds")
        exponent = passed if self.name == "exponential" else math.floor(passed)
        return float(max(self._value("decay") ** exponent, _SMALLEST))

    def _value(self, parameter: str) -> float:
        given = getattr(self, parameter)
        return float(SCHEDULES[self.name][parameter] if given is None else given)

    def to_json(self) -> dict[str, Any]:
        """For summaries: the values that count."""
        return {**asdict(self), **{parameter: self._value(parameter) for parameter in SCHEDULES[self.name]}}


def work_of(work: ClientWork, schedule: Schedule) -> Callable[[int], ClientWork]:
    """Round → what its clients are asked to do, for `tff_sim.simulation.simulate`: `work` but for the learning rate."""
    return lambda number: replace(work, learning_rate=max(work.learning_rate * schedule.factor(number), _SMALLEST))


CONSTANT = Schedule()
