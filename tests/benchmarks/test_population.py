"""The benchmark of populations on disk measures what it says, here on small ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.population import clients_of_digits, measure
from tff_sim.plan import random_cohorts
from tff_sim.population import StoredPopulation, write_population

ROOT = Path(__file__).parents[2]


def test_a_measurement_reads_the_cohorts_examples(tmp_path: Path) -> None:
    folder = tmp_path / "population"
    write_population(folder, clients_of_digits(40))
    stored = StoredPopulation(folder)
    plan = random_cohorts(stored.names, 5 / 40, seed=0)
    expected = sum(len(stored[name]) for number in (1, 2, 3) for name in plan(number).reports)
    for in_memory in (False, True):
        found = measure(folder, rounds=3, cohort=5, in_memory=in_memory)
        assert (found["clients"], found["examples"]) == (40, expected)
        assert set(found["memory_mb"]) == {0, 1, 3}
        assert min(found["memory_mb"].values()) > 10


def test_it_prints_a_line_for_each_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.population", "--rounds", "2", "--clients", "50", "--cohort", "5"]
    run = subprocess.run(
        [*command, "--folder", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert [line.split(":")[0].split("  open")[0] for line in lines] == [
        "2,000 clients", "  on disk  ", "  in memory", "50 clients", "  on disk  ", "  in memory",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []
