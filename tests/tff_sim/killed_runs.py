"""A program that runs an experiment in processes that are killed at chosen instants, and go on.

    python -m tests.tff_sim.killed_runs EXPERIMENT.toml KILLED WHOLE INSTANT…

An instant is ``fsync:N`` or ``replace:N``: SIGKILL comes in the place of the N-th call of it, so with a file half made
or not yet renamed; ``metrics:N``: right after row N of metrics.csv; or ``round:N``: while the worker computes round N.
At last a process runs to the end, in the folder KILLED; another runs without being killed, in WHOLE.

They are forks of one process that has loaded TensorFlow, which takes most of a start, and has not used it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def _dying(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    """The function, until its N-th call."""
    calls = 0

    def called(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            _die()
        return function(*arguments)

    return called


def _arm(instant: str) -> Callable[[Any], None]:
    """Prepare to die then; what is to be called after each round."""
    kind, _, count = instant.partition(":")
    number = int(count)
    if kind == "fsync":
        os.fsync = _dying(os.fsync, number)
    elif kind == "replace":
        Path.replace = _dying(Path.replace, number)  # type: ignore[method-assign]
    elif kind == "metrics":
        from tff_sim.experiments.results import ResultFiles

        original = ResultFiles._append

        def append(self: Any, rows: Any) -> None:
            kept = list(rows)
            original(self, kept)
            if kept[-1][0] == number:
                _die()

        ResultFiles._append = append  # type: ignore[method-assign]
    elif kind == "round":

        def killer() -> None:
            time.sleep(0.002)  # a round takes longer
            _die()

        return lambda row: threading.Thread(target=killer).start() if row.round == number - 1 else None
    return lambda row: None


def main(experiment: Path, killed: Path, whole: Path, instants: list[str]) -> int:
    from tff_sim.experiments.file import load_experiment
    from tff_sim.experiments.runner import run_experiment

    for out, instant in [*((killed, instant) for instant in instants), (killed, ""), (whole, "")]:
        child = os.fork()
        if child == 0:
            progress = _arm(instant) if instant else lambda row: None
            run_experiment(load_experiment(experiment, {}), out, progress, resume=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if died != bool(instant) or (not instant and status != 0):
            sys.stderr.write(f"{instant or 'the end'}: status {status}\n")
            return 1
    return 0


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_federated  # noqa: F401
    experiment, killed, whole = map(Path, sys.argv[1:4])
    sys.exit(main(experiment, killed, whole, sys.argv[4:]))
