"""Errors of the benchmarks.

PocketfedError
└── BenchmarkError  a benchmark can't run here; the message says what is missing, or what a process said at its end
"""

from __future__ import annotations

from device_runtime.errors import PocketfedError


class BenchmarkError(PocketfedError):
    """A benchmark can't run here."""
