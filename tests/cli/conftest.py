"""What the tests of the commands share: TensorFlow imported without noise, and a look at running processes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow 2.14 uses what its dependencies have deprecated since
    import tensorflow  # noqa: F401


@pytest.fixture(autouse=True)
def log_of_rounds() -> Iterator[None]:
    """`serve` in this process turns the server's log on; other tests expect it as it was."""
    loggers = [logging.getLogger(name) for name in ("aggregation_server", "uvicorn")]
    before = [(logger.level, logger.handlers) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers = handlers


@pytest.fixture(scope="session")
def processes_of() -> Callable[[Path], dict[int, str]]:
    """`processes_of(folder)`: id and command line of each running process that names this folder."""

    if not Path("/proc/self/cmdline").exists():
        pytest.skip("this system does not show its processes in /proc")

    def find(folder: Path) -> dict[int, str]:
        lines = {}
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it ended as it was looked at
                continue
            if str(folder) in line:
                lines[int(process.parent.name)] = line
        return lines

    return find
