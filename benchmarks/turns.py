"""Two runtimes measured by turns, so that what else the machine does meets both alike.

A runtime is a `Side`: a process of its own, since PyTorch lives in another environment and TensorFlow's threads
are set once in a process. It is told on standard input how many steps to take, and answers with the seconds of each,
in lines of JSON.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Protocol, Self

from benchmarks.errors import BenchmarkError

ROOT = Path(__file__).parents[1]
_TIMEOUT = 300.0  # seconds for an answer, the first import of TensorFlow in a fresh environment included


@dataclass(frozen=True)
class Plan:
    """How often each side has its turn, and how many steps it takes in one."""

    turns: int
    steps: int


class Turning(Protocol):
    """What takes turns."""

    def turn(self, steps: int) -> list[float]:
        """Seconds of each of so many steps in a row."""
        ...


class Local:
    """A function of this process as a side: where one environment has both, and no thread is left running."""

    def __init__(self, step: Callable[[], object]) -> None:
        self._step = step

    def turn(self, steps: int) -> list[float]:
        """Seconds of each of so many calls in a row."""
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            self._step()
            seconds.append(time.perf_counter() - start)
        return seconds


class Side:
    """A program of `benchmarks.sides`, started and ready for its turns; a context manager that ends it.

    Raises:
        BenchmarkError: it ended, or gave no answer in time; the message ends with the last that it said.
    """

    def __init__(self, python: Path, program: str, *arguments: object) -> None:
        self._name = program
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by __exit__
        self._process = subprocess.Popen(
            [str(python), "-m", f"benchmarks.sides.{program}", *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        try:
            self.ready: dict[str, Any] = self._answer()
        except BaseException:
            self.close()
            raise

    def turn(self, steps: int) -> list[float]:
        """Seconds of each of so many steps in a row."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"steps": steps}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        seconds: list[float] = self._answer()["seconds"]
        return seconds

    def close(self) -> None:
        """End the process; it ends by itself when its input does."""
        try:
            self._process.communicate(timeout=10)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._process.kill()
            self._process.wait()
        self._said.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        timer = threading.Timer(_TIMEOUT, self._process.kill)
        timer.start()
        try:
            # What a library prints between the answers is none.
            line = next((line for line in self._process.stdout if line.startswith("{")), "")
        finally:
            timer.cancel()
        if not line:
            raise self._failure()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failure(self) -> BenchmarkError:
        code = self._process.wait()
        self._said.seek(0)
        lines = [line for line in self._said.read().splitlines() if line.strip()]
        said = lines[-1].strip() if lines else "it said nothing"
        return BenchmarkError(f"benchmark process {self._name} ended with code {code}: {said}")


def by_turns(ours: Turning, theirs: Turning, plan: Plan) -> tuple[float, float]:
    """Milliseconds of a step of each side.

    The median of a turn is what a step takes in training; the least of the turns is the one that nothing else on the
    machine disturbed. The first step of a turn finds the caches full of the other side's data, and is left out.
    """
    medians: tuple[list[float], list[float]] = ([], [])
    for _ in range(plan.turns):
        for found, side in zip(medians, (ours, theirs), strict=True):
            found.append(median(side.turn(plan.steps + 1)[1:]))
    return min(medians[0]) * 1e3, min(medians[1]) * 1e3
