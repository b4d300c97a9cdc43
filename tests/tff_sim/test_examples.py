"""The scripts of examples/, as programs."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tff_sim

ROOT = Path(__file__).parents[2]


def _run(*arguments: str) -> str:
    """What examples/fed_avg_script.py printed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "fed_avg_script.py"), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=540,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_tff_script_with_our_process_beside_tffs_goes_on_where_it_ended(tmp_path: Path) -> None:
    arguments = ["--clients", "8", "--fraction", "0.5", "--out", str(tmp_path), "--rounds"]
    first = _run(*arguments, "2")
    assert "goes on" not in first
    rows = {name: _rows(tmp_path / name / "metrics.csv") for name in ("tff", "pocketfed")}
    printed = [[number, f"{100 * float(one['accuracy']):.2f}%", f"{100 * float(two['accuracy']):.2f}%"]
               for number, one, two in zip("12", rows["tff"], rows["pocketfed"], strict=True)]  # fmt: skip
    assert [line.split() for line in first.splitlines()] == [["round", "tff", "pocketfed"], *printed]

    second = _run(*arguments, "3").splitlines()
    assert second[:2] == ["tff: goes on after round 2", "pocketfed: goes on after round 2"]
    assert second[2:5] == first.splitlines()  # the rounds before are not run again
    for name, before in rows.items():
        after = _rows(tmp_path / name / "metrics.csv")
        assert after[:2] == before
        losses = [float(row["loss"]) for row in after]
        assert losses == sorted(losses, reverse=True)  # it goes on from what was learned
        assert float(after[-1]["accuracy"]) > 0.7
        assert list((tmp_path / name / "events").iterdir())
    ends = [float(_rows(tmp_path / name / "metrics.csv")[-1]["accuracy"]) for name in rows]
    assert ends[0] == pytest.approx(ends[1], abs=0.1)  # the same algorithm in another order of batches


def test_the_experiment_of_the_page_on_simulation(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "simulation.md").read_text(encoding="utf-8")
    (script,) = (part for part in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "run_experiment" in part)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = _rows(tmp_path / "runs" / "script" / "metrics.csv")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [row["round"] for row in rows] == ["1", "2", "3"]


def test_every_public_name_is_there() -> None:
    assert [name for name in tff_sim.__all__ if not hasattr(tff_sim, name)] == []
    assert sorted(tff_sim.__all__) == sorted(tff_sim._HOMES)
