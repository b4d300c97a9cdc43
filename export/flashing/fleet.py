"""Flash several targets at a time; what goes wrong with one of them is told, and stops none of the others."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from device_runtime.errors import PocketfedError
from export.flashing.plan import Plan, Runner


@dataclass(frozen=True)
class Outcome:
    """How it went with one target: the exit code, 0 for well; a line that says more; how many seconds it took."""

    target: str
    exit_code: int
    detail: str
    seconds: float


def flash_all(plans: Sequence[Plan], jobs: int, tell: Callable[[int, str], None]) -> list[Outcome]:
    """Do every plan, `jobs` of them at a time; the outcomes in the plans' order.

    Args:
        plans: one a target.
        jobs: at least 1.
        tell: called with how many steps of all are done, and what was done last; by one thread at a time.
    """
    runner, progress = Runner(), _Progress(tell)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            return list(pool.map(lambda plan: _flash(plan, runner, progress), plans))
        except BaseException:  # most likely an interrupt
            runner.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _flash(plan: Plan, runner: Runner, progress: _Progress) -> Outcome:
    started, done, detail, code = time.monotonic(), 0, "", 0
    try:
        for step in plan.steps:
            detail = step.do(runner) or detail
            done += 1
            progress.advance(1, f"{plan.target}: {step.title}")
    except PocketfedError as error:
        detail, code = str(error).removeprefix(f"{plan.target}: "), error.exit_code
        progress.advance(len(plan.steps) - done, f"{plan.target}: FAILED")
    if plan.cleanup is not None and done > 0:  # before the first step has ended well nothing is there
        with contextlib.suppress(PocketfedError):
            plan.cleanup.do(runner)
    return Outcome(plan.target, code, detail, time.monotonic() - started)


class _Progress:
    """Counts the steps of all threads."""

    def __init__(self, tell: Callable[[int, str], None]) -> None:
        self._tell = tell
        self._done = 0
        self._lock = threading.Lock()

    def advance(self, steps: int, what: str) -> None:
        with self._lock:
            self._done += steps
            self._tell(self._done, what)
