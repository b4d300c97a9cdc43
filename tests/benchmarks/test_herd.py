"""What `benchmarks.herd` shows, with fewer devices: a herd is spread, a handful is brought together."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.checkins import Server
from benchmarks.herd import Handful, Herd, HerdResult, run_handful, run_herd

ROOT = Path(__file__).parents[2]
# Everything at a twentieth of the herd's size: the server, the target and the rounds.
HERD = Herd(5_000, seconds=600, target=25.0, server=Server(goal=30, minimum=24, capacity=75.0, queue=64))
CHANCE = 3 * (HERD.target / 10) ** 0.5  # three standard deviations of a rate over ten seconds


@pytest.fixture(scope="module")
def steered() -> HerdResult:
    return run_herd(HERD, None)


def test_the_herd_is_spread_at_the_target_rate_and_rounds_go_on(steered: HerdResult) -> None:
    first = steered.rates[15:]
    assert first.max() <= HERD.target + CHANCE
    assert first.min() >= 0.5 * HERD.target  # no silence either
    assert steered.log.gave_up == 0
    assert len(steered.log.commits) >= 5
    assert max(steered.log.selections) < 5


def test_fixed_windows_keep_the_herd_together(steered: HerdResult) -> None:
    fixed = run_herd(HERD, 5.0)
    assert fixed.settled is None
    assert fixed.peak > 3 * HERD.target
    assert fixed.log.gave_up > 1000
    assert len(fixed.log.refused) > 5 * len(steered.log.refused)
    assert len(steered.log.commits) >= len(fixed.log.commits) - 1


def test_long_windows_starve_rounds(steered: HerdResult) -> None:
    assert len(run_herd(HERD, 900.0).log.commits) < len(steered.log.commits)


def test_a_handful_is_brought_together() -> None:
    handful = replace(Handful(), hours=12)
    steered, short, long = (run_handful(handful, window) for window in (None, 5.0, 900.0))
    assert steered.rounds_per_hour > 0.95 * short.rounds_per_hour
    assert steered.check_ins < 0.7 * short.check_ins
    assert steered.rounds_per_hour > 3 * long.rounds_per_hour


def test_it_prints_tables_and_draws(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.herd", "--devices", "500", "--seconds", "120", "--hours", "4"]
    run = subprocess.run(
        [*command, "--out", str(tmp_path / "herd.png")],
        cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    names = [line.split("|")[1].strip() for line in run.stdout.splitlines() if line]
    assert names == [
        "windows", "---", "steered", "5 s", "15 minutes",
        "windows", "---", "steered", "5 s", "60 s", "15 minutes",
    ]  # fmt: skip
    assert (tmp_path / "herd.png").read_bytes().startswith(b"\x89PNG")
