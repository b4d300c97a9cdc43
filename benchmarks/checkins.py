"""Check-ins of a fleet at a server over time, as events: what `benchmarks.herd` compares windows with.

A device behaves as `device_runtime.participant`, `.transport` and ``pocketfed-device run --keep-trying`` do. Rejected,
it waits for the window, ± 20 %. Where the server is too busy (status 503), it waits for its back-off or for
``Retry-After``, whichever is longer; after five attempts in vain it comes back after 15 minutes, ± 20 %. Accepted, it
trains, reports and checks in again at once; or it drops out.

The server answers `Server.capacity` check-ins a second, from a queue that is bounded; what finds it full is refused at
once, which costs nothing here. That is kind to what refuses much. Reports take no part of the capacity.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aggregation_server.coordination.pace import JITTER, PaceSteering, RoundLengths
from device_runtime.transport import RetryPolicy

_RETRY = RetryPolicy()
_GIVEN_UP = 900.0  # seconds until a device tries again that was refused five times


class Windows(Protocol):
    """When devices are told to come back."""

    def arrived(self, now: float) -> None: ...

    def rejected(self, now: float, next_selection: float | None) -> float:
        """Seconds, for a device that is rejected."""

    def busy(self, now: float, next_selection: float | None) -> float:
        """``Retry-After``, for a device that could not be answered."""


class FixedWindows:
    """The same window for everybody: of a rejected device ± 20 %, of one that is not answered to the second."""

    def __init__(self, seconds: float, rng: random.Random) -> None:
        self._seconds, self._rng = seconds, rng

    def arrived(self, now: float) -> None:
        pass

    def rejected(self, now: float, next_selection: float | None) -> float:
        return self._seconds * self._rng.uniform(1 - JITTER, 1 + JITTER)

    def busy(self, now: float, next_selection: float | None) -> float:
        return self._seconds


class SteeredWindows:
    """Those of `aggregation_server.coordination.pace`."""

    def __init__(self, pace: PaceSteering, rng: random.Random) -> None:
        self.pace, self._rng = pace, rng

    def arrived(self, now: float) -> None:
        self.pace.arrived(now)

    def rejected(self, now: float, next_selection: float | None) -> float:
        return self.pace.window(now, next_selection)

    def busy(self, now: float, next_selection: float | None) -> float:
        return self.pace.retry_after(now, self._rng, next_selection)


@dataclass(frozen=True)
class Server:
    """What a server can, and what its rounds want: the fields of `aggregation_server.rounds.RoundConfig`.

    Attributes:
        capacity: check-ins that are answered in a second.
        queue: check-ins that wait for an answer at most.
    """

    goal: int
    capacity: float = 1500.0
    queue: int = 1024
    over_selection: float = 1.3
    minimum: int = 1
    selection_timeout: float = 60.0
    reporting_timeout: float = 180.0

    @property
    def cohort(self) -> int:
        return math.ceil(round(self.goal * self.over_selection, 9))


@dataclass(frozen=True)
class Training:
    """What accepted devices do.

    Attributes:
        median, sigma: of the seconds from a round's start to a device's report, which are log-normal.
        drop_out: share of the devices that don't report.
        away: seconds until one of them checks in again, ± 20 %.
    """

    median: float = 60.0
    sigma: float = 0.4
    drop_out: float = 0.08
    away: float = 300.0


@dataclass
class Log:
    """What happened, times in seconds from the start.

    Attributes:
        check_ins: when a device checked in, answered or not.
        refused: … and was not answered, because the queue was full.
        selections: seconds from opening to start of each round that committed.
        commits: when rounds committed.
        gave_up: devices that were not answered in five attempts in a row.
    """

    check_ins: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    selections: list[float] = field(default_factory=list)
    commits: list[float] = field(default_factory=list)
    gave_up: int = 0


class Simulation:
    """Runs a fleet against a server.

    Args:
        server: see there.
        windows: what rejected devices are told.
        arrivals: seconds at which the devices check in first.
        training: what accepted ones do.
        rng: of everything that is random but the windows.
    """

    def __init__(
        self,
        server: Server,
        windows: Windows,
        arrivals: Sequence[float],
        training: Training | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._server, self._windows = server, windows
        self._training = training or Training()
        self._rng = rng or random.Random(0)  # noqa: S311
        self._failures = [0] * len(arrivals)
        self._free = 0.0  # when the server has answered what waits
        # (time, device, round): a check-in of round −1, a report of the round; device −1 is the round's time limit.
        self._events = [(at, device, -1) for device, at in enumerate(arrivals)]
        heapq.heapify(self._events)
        self._lengths = RoundLengths()
        self.log = Log()
        self._round = -1
        self._open(0.0)

    def run(self, seconds: float) -> Log:
        """What happens in the first `seconds`."""
        while self._events and self._events[0][0] < seconds:
            now, device, number = heapq.heappop(self._events)
            if device < 0:
                self._time_out(now, number)
            elif number < 0:
                self._check_in(device, now)
            else:
                self._report(device, now, number)
        return self.log

    def _check_in(self, device: int, now: float) -> None:
        log, server = self.log, self._server
        log.check_ins.append(now)
        self._windows.arrived(now)
        if (self._free - now) * server.capacity >= server.queue:
            return self._refuse(device, now)
        self._failures[device] = 0
        self._free = answered = max(self._free, now) + 1 / server.capacity
        if self._started is None and len(self._cohort) < server.cohort:
            self._cohort.append(device)
            if len(self._cohort) == server.cohort:
                self._start(answered)
            return None
        return self._later(device, answered, self._windows.rejected(answered, self._next_selection(answered)))

    def _refuse(self, device: int, now: float) -> None:
        self.log.refused.append(now)
        self._failures[device] += 1
        if self._failures[device] == _RETRY.attempts:
            self._failures[device] = 0
            self.log.gave_up += 1
            return self._later(device, now, _GIVEN_UP)
        window = self._windows.busy(now, self._next_selection(now)) * (1 + JITTER * abs(self._jitter()))
        return self._push(device, now + max(_RETRY.wait(self._failures[device], self._jitter()), window))

    def _next_selection(self, now: float) -> float | None:
        if self._started is None:
            return None
        return self._lengths.next_selection(self._started, now, self._deadline)

    def _open(self, now: float) -> None:
        self._round += 1
        self._opened = now
        self._started: float | None = None
        self._cohort: list[int] = []
        self._reports = 0
        self._limit(now + self._server.selection_timeout)

    def _limit(self, deadline: float) -> None:
        self._deadline = deadline
        heapq.heappush(self._events, (deadline, -1, self._round))

    def _start(self, now: float) -> None:
        self._started = now
        for device in self._cohort:
            if self._rng.random() < self._training.drop_out:
                self._later(device, now, self._training.away)
            else:
                taken = self._rng.lognormvariate(math.log(self._training.median), self._training.sigma)
                heapq.heappush(self._events, (now + taken, device, self._round))
        self._limit(now + self._server.reporting_timeout)

    def _report(self, device: int, now: float, number: int) -> None:
        self._push(device, now)
        if number == self._round:
            self._reports += 1
            if self._reports == self._server.goal:
                self._commit(now)

    def _time_out(self, now: float, number: int) -> None:
        if number != self._round or now < self._deadline:
            return
        if self._started is None and len(self._cohort) >= self._server.minimum:
            self._start(now)
        elif self._started is None:
            for device in self._cohort:  # they hear that the round was abandoned
                self._push(device, now)
            self._open(now)
        elif self._reports >= self._server.minimum:
            self._commit(now)
        else:
            self._lengths.ended(now - self._started)
            self._open(now)

    def _commit(self, now: float) -> None:
        assert self._started is not None
        self._lengths.ended(now - self._started)
        self.log.selections.append(self._started - self._opened)
        self.log.commits.append(now)
        self._open(now)

    def _later(self, device: int, now: float, wait: float) -> None:
        self._push(device, now + wait * (1 + JITTER * self._jitter()))

    def _push(self, device: int, at: float) -> None:
        heapq.heappush(self._events, (at, device, -1))

    def _jitter(self) -> float:
        return 2 * self._rng.random() - 1
