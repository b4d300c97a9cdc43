"""Bundles for benchmarks, exported in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.turns import ROOT


def exported(model: str, folder: Path) -> tuple[Path, float]:
    """Path of a model's bundle, in a new folder within `folder`, and the seconds that its export took.

    Raises:
        BenchmarkError: the export failed.
    """
    command = [sys.executable, "-m", "benchmarks.sides.exporting", model, tempfile.mkdtemp(dir=folder)]
    run = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if run.returncode:
        raise BenchmarkError(f"the export of {model} failed: {(run.stderr.strip() or '?').splitlines()[-1]}")
    made = json.loads(run.stdout.splitlines()[-1])
    return Path(made["bundle"]), made["seconds"]
