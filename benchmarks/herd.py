"""A herd, and a handful: pace steering beside fixed windows, in a simulation of devices and server.

    python -m benchmarks.herd                # half a minute; both tables
    python -m benchmarks.herd --out herd.png

*Herd*: 100,000 devices come back within five seconds after an outage, to a server that answers 1,500 check-ins a
second. *Handful*: 20 devices, for rounds that want 10 reports. How devices and server behave is in
`benchmarks.checkins`; what a rejected device is told, `aggregation_server.coordination.pace` says, or a fixed window
± 20 % does.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aggregation_server.coordination.pace import PaceSteering
from aggregation_server.task import Task
from benchmarks.checkins import FixedWindows, Log, Server, Simulation, SteeredWindows, Windows

STEERED = "steered"
_SMOOTHED = 10  # seconds over which a rate is taken


@dataclass(frozen=True)
class Herd:
    """The outage's size, and what the server can.

    Attributes:
        devices: that come back.
        within: seconds in which they do.
        seconds: how long it is looked at.
        target: check-ins a second that are wanted at most.
        server: rounds of 300 reports.
    """

    devices: int = 100_000
    within: float = 5.0
    seconds: int = 1200
    target: float = 500.0
    server: Server = field(default_factory=lambda: Server(goal=300, minimum=240))


@dataclass(frozen=True)
class HerdResult:
    """What became of a herd; rates are check-ins a second, over ten seconds.

    Attributes:
        rates: of every second.
        settled: seconds until the rate is at or below the target for good; None where it never is.
        peak: the highest rate after the first minute.
        log: all that happened.
    """

    rates: npt.NDArray[np.float64]
    settled: int | None
    peak: float
    log: Log


def run_herd(herd: Herd, window: float | None, seed: int = 0) -> HerdResult:
    """Simulate it with pace steering, or with windows of so many seconds."""
    rng = random.Random(seed)  # noqa: S311
    arrivals = [rng.uniform(0, herd.within) for _ in range(herd.devices)]
    windows = _windows(window, herd.target, seed)
    log = Simulation(herd.server, windows, arrivals, rng=rng).run(herd.seconds)
    counts = np.bincount(np.asarray(log.check_ins, np.int64), minlength=herd.seconds)
    rates = np.convolve(counts, np.ones(_SMOOTHED) / _SMOOTHED, "valid")  # of the second and the nine after it
    above = np.flatnonzero(rates > herd.target)
    last = int(above[-1]) + 1 if above.size else 0
    return HerdResult(rates, None if last == rates.size else last, float(rates[60:].max()), log)


@dataclass(frozen=True)
class Handful:
    """A small population, and the rounds that it is wanted for."""

    devices: int = 20
    hours: float = 48.0
    server: Server = field(default_factory=lambda: Server(goal=10, minimum=8))


@dataclass(frozen=True)
class HandfulResult:
    """Committed rounds an hour, seconds that a selection takes in the mean, and a device's check-ins in a round."""

    rounds_per_hour: float
    selection: float
    check_ins: float


def run_handful(handful: Handful, window: float | None, seed: int = 0) -> HandfulResult:
    """Simulate it with pace steering, or with windows of so many seconds."""
    rng = random.Random(seed)  # noqa: S311
    arrivals = [rng.uniform(0, 60) for _ in range(handful.devices)]
    log = Simulation(handful.server, _windows(window, 500.0, seed), arrivals, rng=rng).run(handful.hours * 3600)
    rounds = len(log.commits)
    return HandfulResult(
        rounds / handful.hours, float(np.mean(log.selections)), len(log.check_ins) / rounds / handful.devices
    )


def herd_table(results: Mapping[str, HerdResult]) -> str:
    """As Markdown."""
    rows = [["windows", "peak after a minute", "at the target after", "check-ins", "refused", "gave up", "rounds"]]
    for name, found in results.items():
        settled = "never" if found.settled is None else f"{found.settled:,} s"
        counts = (len(found.log.check_ins), len(found.log.refused), found.log.gave_up, len(found.log.commits))
        rows.append([name, f"{found.peak:,.0f}/s", settled, *(f"{count:,}" for count in counts)])
    return _markdown(rows)


def handful_table(results: Mapping[str, HandfulResult]) -> str:
    """As Markdown."""
    rows = [["windows", "rounds an hour", "a selection takes", "check-ins of a device in a round"]]
    rows += [
        [name, f"{found.rounds_per_hour:.1f}", f"{found.selection:.1f} s", f"{found.check_ins:.1f}"]
        for name, found in results.items()
    ]
    return _markdown(rows)


def herd_figure(herd: Herd, results: Mapping[str, HerdResult]) -> Any:
    """A matplotlib figure of check-ins a second over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, found), color in zip(results.items(), ("#1f6feb", "#d1242f", "#8b949e"), strict=False):
        label = name if name == STEERED else f"windows of {name}"
        axes.plot(np.maximum(found.rates, 1), color=color, linewidth=2, label=label)
    axes.axhline(herd.target, color="black", linestyle="--", linewidth=1, label=f"target {herd.target:g}/s")
    axes.axhline(herd.server.capacity, color="black", linestyle=":", linewidth=1, label="what the server can answer")
    axes.set_yscale("log")
    axes.set_xlim(0, herd.seconds)
    axes.set_xlabel("seconds after the outage", fontsize=12)
    axes.set_ylabel("check-ins a second", fontsize=12)
    axes.set_title(f"{herd.devices:,} devices come back", fontsize=12)
    axes.legend(frameon=False, fontsize=10, ncols=2, loc="upper right")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate both, print the tables, draw the herd."""
    parser = argparse.ArgumentParser(description="Pace steering beside fixed windows.")
    parser.add_argument("--devices", type=int, default=Herd.devices, help="of the herd")
    parser.add_argument("--seconds", type=int, default=Herd.seconds, help="for which the herd is looked at")
    parser.add_argument("--hours", type=float, default=Handful.hours, help="for which the handful is looked at")
    parser.add_argument("--out", type=Path, help="a picture of the herd, such as herd.png")
    options = parser.parse_args(arguments)
    herd = Herd(devices=options.devices, seconds=options.seconds)
    fleet = {name: run_herd(herd, window) for name, window in _COMPARED.items() if window != 60}
    print(herd_table(fleet), flush=True)
    print()
    handful = Handful(hours=options.hours)
    print(handful_table({name: run_handful(handful, window) for name, window in _COMPARED.items()}))
    if options.out is not None:
        herd_figure(herd, fleet).savefig(options.out, dpi=120)


_COMPARED = {STEERED: None, "5 s": 5.0, "60 s": 60.0, "15 minutes": 900.0}


def _windows(seconds: float | None, target: float, seed: int) -> Windows:
    rng = random.Random(seed + 1)  # noqa: S311
    if seconds is not None:
        return FixedWindows(seconds, rng)
    return SteeredWindows(PaceSteering(target, Task.retry_seconds), rng)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "| --- " * len(rows[0]) + "|", *lines[1:]])


if __name__ == "__main__":
    main()
