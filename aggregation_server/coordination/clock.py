"""The server's clock: monotonic seconds that go on where the last server stopped.

A wall clock may jump, and a monotonic one starts anew with every process. So the time is kept in the database, and
servers only ever move it forward, by what passes on their own monotonic clocks. It stands still while no server runs:
after an outage, devices have as long as they had before it. Servers that share a database agree within the time between
two of their transactions, since each takes the later one of its own time and the database's.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class ServerClock:
    """One server's idea of the time.

    Args:
        monotonic: seconds that never go back; exchanged by tests.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._offset = -monotonic()

    def now(self) -> float:
        """The time, as far as this server knows."""
        return self._monotonic() + self._offset

    def agree(self, stored: float) -> float:
        """The time, not before the `stored` one."""
        self._offset = max(self._offset, stored - self._monotonic())
        return self.now()
