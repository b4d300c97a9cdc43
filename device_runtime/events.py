"""What a command tells while it works: plain lines, or with ``--log-json`` one JSON object an event and line.

Every object has ``time`` (RFC 3339, UTC, milliseconds) and ``event``; the others depend on the event (docs/device.md).
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from typing import Any, TextIO


class Events:
    """Where events go.

    Args:
        as_json: one JSON object a line, instead of text.
        stream: standard output by default; looked up at each event.
    """

    def __init__(self, as_json: bool = False, stream: TextIO | None = None) -> None:
        self.as_json = as_json
        self._stream = stream

    def tell(self, event: str, text: str = "", **fields: Any) -> None:
        """One event. `text` is the line for a person; an event without one is told in JSON alone."""
        if self.as_json:
            now = time.time()
            moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
            line = json.dumps({"time": f"{moment}.{int(now % 1 * 1000):03d}Z", "event": event} | _finite(fields))
        elif text:
            line = text
        else:
            return
        with contextlib.suppress(OSError):  # a log on a full disk, or a reader that has left, does not end a round
            print(line, file=self._stream or sys.stdout, flush=True)


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON has neither infinity nor NaN."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()
    }
