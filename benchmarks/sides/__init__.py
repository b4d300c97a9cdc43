"""Programs that take training steps when they are told to; each is one side of a comparison.

Run by `benchmarks.turns.Side`. Nothing here but the standard library, so that every environment can import it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

_WARM_UP = 3


def take_turns(step: Callable[[], object]) -> None:
    """Warm up, say that this side is ready, and answer each turn with the seconds of its steps."""
    for _ in range(_WARM_UP):
        step()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": [_timed(step) for _ in range(json.loads(line)["steps"])]}), flush=True)


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
