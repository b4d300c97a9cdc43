"""What a server says on standard error: lines for people, or JSON objects for programs that collect logs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

_LOGGERS = ("aggregation_server", "uvicorn")
_SECONDS = 1.0


class Sparing(logging.Filter):
    """Passes the same message of uvicorn once a second: who has no secret can have it said as often as he likes.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[str, float] = {}  # uvicorn has few messages

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(_LOGGERS[1]):
            return True
        now = self._clock()
        if now < self._said.get(record.msg, -_SECONDS) + _SECONDS:
            return False
        self._said[record.msg] = now
        return True


def log_to_stderr(as_json: bool = False) -> None:
    """Rounds that are over, what an operator did, and what went wrong.

    Args:
        as_json: one JSON object a line, with the fields of its event; docs/monitoring.md has them.
    """
    handler = logging.StreamHandler()
    handler.addFilter(Sparing())
    handler.setFormatter(_json() if as_json else logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
    logging.getLogger(_LOGGERS[0]).setLevel(logging.INFO)
    logging.getLogger(_LOGGERS[1]).setLevel(logging.WARNING)


def _json() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter

    names = {"levelname": "level", "name": "logger", "exc_info": "error"}
    return JsonFormatter("{levelname}{name}{message}", style="{", rename_fields=names, timestamp="time")
