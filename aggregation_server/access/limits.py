"""Rate limits by key, such as a device's name or an address: token buckets in bounded memory.

A bucket is one number, the time at which it is full again (the generic cell rate algorithm: a request moves it on by
1 / rate, and is taken if that is at most burst / rate from now). A bucket that is full needs no memory: it is as good
as one that never was.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from device_runtime.errors import InputError


class RateLimits:
    """One token bucket for each key, of which the most recently used are kept.

    Within any t seconds at most `burst` + `rate` · t requests of a key are taken, whatever other keys do. Where more
    keys than there is room for are in use at once, the least recently used one is forgotten; but a key that is not
    known is then taken to owe as much as any that was forgotten. So nobody escapes a limit by having keys forgotten.
    It costs that new keys find a bucket that is less than full, or empty, while somebody uses more than `keys` of them.

    Args:
        rate: requests a second.
        burst: requests that are taken at once, at least 1.
        keys: how many are remembered; each takes about 200 bytes.

    Raises:
        InputError: a figure that can't be.
    """

    def __init__(self, rate: float, burst: float, keys: int = 100_000) -> None:
        for name, value, least in (("burst", burst, 1), ("keys", keys, 1)):
            if not least <= value < math.inf:
                raise InputError(f"rate limit: {name} should be at least {least}, not {value!r}")
        if not 0 < rate < math.inf:
            raise InputError(f"rate limit: rate should be above 0 requests a second, not {rate!r}")
        self._interval = 1 / rate
        self._depth = burst / rate
        self._keys = keys
        self._full: OrderedDict[str, float] = OrderedDict()  # key → when its bucket is full again; last used last
        self._forgotten = -math.inf  # the latest such time of a key that was forgotten

    def __len__(self) -> int:
        return len(self._full)

    def take(self, key: str, now: float) -> float:
        """Take a request, if the key's bucket allows.

        Args:
            key: whose.
            now: seconds of a clock that does not go back.

        Returns:
            0 where it is taken; else the seconds after which one would be. A request that is not taken costs nothing.
        """
        wait = self.wait(key, now)
        if wait > 0:
            return wait
        self._full[key] = self._full_again(key, now)
        self._full.move_to_end(key)
        self._forget(now)
        return 0.0

    def wait(self, key: str, now: float) -> float:
        """What `take` would return; nothing is taken."""
        return max(self._full_again(key, now) - self._depth - now, 0.0)

    def _full_again(self, key: str, now: float) -> float:
        return max(self._full.get(key, self._forgotten), now) + self._interval

    def _forget(self, now: float) -> None:
        """Drop the oldest keys that are full again, at most two so that a call stays short, and what has no room."""
        for _ in range(2):
            key, full = next(iter(self._full.items()))
            if len(self._full) == 1 or (full > now and len(self._full) <= self._keys):
                return
            del self._full[key]
            self._forgotten = max(self._forgotten, full)
