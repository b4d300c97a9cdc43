"""What the suites of `pocketfed bench` have in common: which benchmarks are run, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.errors import BenchmarkError
from benchmarks.result import Result

Progress = Callable[[int, str], None]
"""Told how many are done, and the next one's name or what it does."""


def chosen(names: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    """`names`, or all that are known where it is empty; `BenchmarkError` where one is not known."""
    for name in names:
        if name not in known:
            raise BenchmarkError(f"unknown benchmark {name!r}; known are {', '.join(known)}")
    return names or known


def measure_each(names: Sequence[str], measure: Callable[[str], Result], progress: Progress) -> list[Result]:
    """The results of these benchmarks; `measure` gives that of a name."""
    results = []
    for done, name in enumerate(names):
        progress(done, name)
        results.append(measure(name))
    progress(len(names), "")
    return results
