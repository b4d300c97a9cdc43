"""Pace steering: when a device that is not needed now is to come back (Bonawitz et al. 2019, section 2.3).

One idea serves small and large populations. The server keeps a *schedule* of returns, one slot after the other at the
rate that it wants to see at most, and every check-in books the next slot. No slot lies before the next selection:
until then nobody is needed.

- A small population's slots all lie just behind the next selection, so its devices come back together.
- A large one's are spread evenly over as long as it takes. In a herd each device gets a slot of its own, whether it was
  answered or the server was too busy to. The schedule's length grows as long as more devices come than the rate
  allows, and shrinks where they come no more; so it measures the active population without a list of it.

The schedule is one number: where it ends. Memory and time of a check-in are constant, and nothing is random: devices
vary every wait by ±20 % themselves. They are told such a wait that their slot is the latest that they come, so that a
small population is complete when it is needed; one that comes early is told again, for what is left.

A process that starts knows nothing of its predecessor's schedule. Those who return by the old one and those who are
told by the new one overlap for as long as the old one was, at 1.6 times the target at most; then it has settled again.
"""

from __future__ import annotations

import math
import random

from device_runtime.errors import InputError

JITTER = 0.2
"""A device varies a wait by up to this share of it, up or down (`device_runtime.participant`, `.transport`)."""

_LATEST = 1 + JITTER
# Of devices that come after 67 to 100 % of the time to their slot, up to 1.22 times as many come per second as there
# are slots: the mean of the reciprocal. Slots are wider by that and some room for chance, so that the target holds from
# the first wave on. Where devices come again and again, early as they are, the rate is 77 % of the target.
_WIDER = 1.3
_MEMORY = 300.0  # seconds over which rates are taken
_WEIGHT = 0.25  # of the newest round in what is expected of the next one
_OVERDUE = 1 / 20  # of a round's length so far, until it is looked at again


class PaceSteering:
    """The schedule of one server process; several share a target rate by parts, since devices come to any of them.

    Args:
        target_rate: check-ins a second that are wanted at most, accepted devices' included.
        shortest: seconds that a device waits at least.
        longest: … and at most. Where the slots reach farther, they begin anew between those that are booked, and the
            target no longer holds: `target_rate` × `longest` devices are as many as it can hold for.

    Raises:
        InputError: a rate or a wait is not above 0, or the longest is shorter than the shortest.
    """

    def __init__(self, target_rate: float = 500.0, shortest: float = 2.0, longest: float = 14_400.0) -> None:
        for name, value in (("target_rate", target_rate), ("shortest", shortest), ("longest", longest)):
            if not 0 < value < math.inf:
                raise InputError(f"pace: {name} should be above 0, not {value!r}")
        if longest <= shortest:
            raise InputError(f"pace: longest should be above shortest, {shortest!r} seconds, not {longest!r}")
        self.target_rate = target_rate
        self._shortest = shortest
        self._longest = longest
        self._spacing = _WIDER / target_rate
        self._end = -math.inf  # of the schedule: the last slot that is booked
        self._arrivals = _Decaying()
        self._waits = _Decaying()

    @property
    def settled_rate(self) -> float:
        """Check-ins a second of a large population that comes again and again."""
        return 1 / self._spacing

    def arrived(self, now: float) -> None:
        """Count a check-in at the time `now`, whatever its answer: an accepted device comes back too, unsteered."""
        self._arrivals.add(1.0, now)
        self._end = max(self._end, now) + self._spacing

    def window(self, now: float, next_selection: float | None = None) -> float:
        """The retry window of a device that arrived just now, and is rejected: seconds until it is to check in again.

        Args:
            now: seconds of the caller's monotonic clock.
            next_selection: when devices are needed again, by the same clock; None where that is not known. A device
                that may not take part before a time of its own waits for the later of the two: the caller's part, since
                that moves nobody else's slot.

        Returns:
            From `shortest` to `longest`. Varied by ±20 %, it is 67 to 100 % of the time to the device's slot.
        """
        earliest = now + self._shortest
        if next_selection is not None:  # one that is too far off leaves half of the time to spread the devices over
            earliest = max(earliest, min(next_selection, now + self._longest / 2))
        if self._end > now + self._longest:
            self._end = earliest
        self._end = max(self._end, earliest)
        wait = min(max((self._end - now) / _LATEST, self._shortest), self._longest)
        self._waits.add(wait, now)
        return wait

    def retry_after(self, now: float, rng: random.Random, next_selection: float | None = None) -> int:
        """The whole seconds of ``Retry-After``, for a device that arrived just now and finds the server too busy.

        Devices lengthen this wait by up to 20 % and never shorten it. So it is shortened here for some, by so much that
        they all come back as if they had been rejected: evenly from 83 to 120 % of the window.

        Args:
            now, next_selection: as of `window`.
            rng: of who is among them.
        """
        window = self.window(now, next_selection)
        return math.ceil(window / _LATEST if rng.random() < 1 / (1 + _LATEST) else window)

    def rate(self, now: float) -> float:
        """Check-ins a second, of the last minutes."""
        return self._arrivals.rate(now)

    def waiting(self, now: float) -> float:
        """About how many devices are on their way back, by Little's law: arrivals a second × seconds that they wait.

        It lags behind by some minutes.
        """
        return self._waits.rate(now)


class RoundLengths:
    """How long rounds take from their start to the next selection; foretells the latter.

    A device that comes too early is told again, one that comes too late holds up the round. So the foretold time is an
    early one: the mean less the mean deviation, both exponentially weighted as those of RFC 6298.
    """

    def __init__(self) -> None:
        self._mean: float | None = None
        self._deviation = 0.0

    def ended(self, seconds: float) -> None:
        """A round has ended, so many seconds after its cohort started."""
        if self._mean is None:
            self._mean, self._deviation = seconds, seconds / 4
            return
        self._deviation += _WEIGHT * (abs(seconds - self._mean) - self._deviation)
        self._mean += _WEIGHT * (seconds - self._mean)

    def next_selection(self, began: float, now: float, deadline: float) -> float:
        """When the next selection is expected, of a round that runs.

        Args:
            began: when its cohort started.
            now: not before that.
            deadline: when the round ends at the latest.

        Returns:
            Not after the deadline. Of a round that is overdue, and of the first one, a twentieth of its length so far
            from now.
        """
        expected = began if self._mean is None else began + max(self._mean - self._deviation, 0.0)
        return min(max(expected, now + _OVERDUE * (now - began)), deadline)


class _Decaying:
    """A sum that forgets: what is added counts e^(−age / `_MEMORY`)."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._since: float | None = None
        self._last = 0.0

    def add(self, amount: float, now: float) -> None:
        if self._since is None:
            self._since = self._last = now
        self._sum = self._decayed(now) + amount
        self._last = max(now, self._last)

    def rate(self, now: float) -> float:
        """The sum over the seconds that it stands for; within the first second, over one second."""
        if self._since is None:
            return 0.0
        return self._decayed(now) / (_MEMORY * -math.expm1(-max(now - self._since, 1.0) / _MEMORY))

    def _decayed(self, now: float) -> float:
        return self._sum * math.exp(-max(now - self._last, 0.0) / _MEMORY)
