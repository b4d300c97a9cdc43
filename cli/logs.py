"""What a server says on standard error: lines for people, or JSON objects for programs that collect logs."""

from __future__ import annotations

import logging

_LOGGERS = ("aggregation_server", "uvicorn")


def log_to_stderr(as_json: bool = False) -> None:
    """Rounds that are over, what an operator did, and what went wrong.

    Args:
        as_json: one JSON object a line, with the fields of its event; docs/monitoring.md has them.
    """
    handler = logging.StreamHandler()
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
