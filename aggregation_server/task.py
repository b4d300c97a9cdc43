"""`Task`: what a population of devices is asked to train, and for how long."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from aggregation_server.aggregation.downlink import require_downlink
from aggregation_server.aggregation.robust import Aggregation
from aggregation_server.aggregation.server_optimizer import FED_AVG, ServerOptimizer
from aggregation_server.aggregation.validation import UNBOUNDED, Bounds
from aggregation_server.rounds import RoundConfig
from device_runtime.codec import require_codec
from device_runtime.errors import InputError
from device_runtime.work import ClientWork


@dataclass(frozen=True)
class Task:
    """The configuration of one server.

    Attributes:
        round: goal count, over-selection, minimum and timeouts of every round.
        work: epochs, batch size, learning rate, proximal term and codec of every client. Its seed and
            deadline are replaced: the seed by `device_runtime.work.client_seed`, the deadline by what is left
            of the reporting timeout.
        population: the name that devices check in under; None is the model's name.
        seed: of all clients' work.
        rounds: committed rounds after which the task is complete; None is endless.
        retry_seconds: for which a rejected device is told to wait at least; it varies that by ± 20 %.
        checkin_rate: check-ins a second that are wanted at most; rejected devices wait as long as it takes.
        downlink: how new weights travel to the devices, one of `aggregation_server.aggregation.downlink.DOWNLINKS`.
        poll_seconds: when a waiting device is told to ask for its configuration again, at least, ± 20 %; large cohorts
            wait longer, for the same rate.
        evaluate_every: every so many versions, the fleet evaluates one on its own test examples; None is never.
        participation_seconds: between two rounds of the same device, at least.
        keep_versions: whose weights can be had; older ones are let go of, but for the first and the released one.
        aggregation: how the reports become one delta.
        optimizer: how that becomes a step.
        bounds: what devices may report.
        tick_seconds: between two looks at the time where servers share a database.
    """

    round: RoundConfig
    work: ClientWork = field(default_factory=ClientWork)
    population: str | None = None
    seed: int = 0
    rounds: int | None = None
    retry_seconds: float = 5.0
    checkin_rate: float = 500.0
    poll_seconds: float = 0.2
    downlink: str = "f32"
    evaluate_every: int | None = None
    participation_seconds: float = 0.0
    keep_versions: int = 50
    aggregation: Aggregation = field(default_factory=Aggregation)
    optimizer: ServerOptimizer = FED_AVG
    bounds: Bounds = UNBOUNDED
    tick_seconds: float = 0.25

    def __post_init__(self) -> None:
        require_codec(self.work.codec)
        require_downlink(self.downlink)
        if self.rounds is not None and self.rounds < 1:
            raise InputError(f"task: rounds should be at least 1, or none for an endless task, not {self.rounds}")
        if self.evaluate_every is not None and self.evaluate_every < 1:
            raise InputError(f"task: evaluate_every should be at least 1, or none, not {self.evaluate_every}")
        if self.keep_versions < 1:
            raise InputError(f"task: keep_versions should be at least 1, not {self.keep_versions}")
        for name in ("retry_seconds", "poll_seconds", "tick_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"task: {name} should be above 0 seconds, not {getattr(self, name)}")
        if not 0 < self.checkin_rate < math.inf:
            raise InputError(f"task: checkin_rate should be above 0 a second, not {self.checkin_rate}")
        if not 0 <= self.participation_seconds < math.inf:
            raise InputError(f"task: participation_seconds should be at least 0, not {self.participation_seconds}")
