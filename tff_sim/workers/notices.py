"""What a person should know while a computation goes on: one line each, on standard error by default."""

from __future__ import annotations

import sys
from collections.abc import Callable

Notice = Callable[[str], None]


def to_stderr(line: str) -> None:
    """Print it there, for scripts; the command line passes a function of its own."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
