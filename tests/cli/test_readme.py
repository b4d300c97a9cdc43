"""What the README tells a newcomer to type works as it is written there."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_federated") is None, reason="simulation is not available on this machine"
)


def _run(arguments: list[str], folder: Path) -> str:
    run = subprocess.run(
        arguments, cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, text=True, timeout=600,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_from_a_simulation_to_a_checked_bundle(tmp_path: Path) -> None:
    commands = [shlex.split(line) for line in re.findall(r"^    (pocketfed .*)$", README, re.MULTILINE)[:4]]
    assert [command[1] for command in commands] == ["simulate", "export", "parity", "inspect"]
    programs = Path(sys.executable).parent
    outputs = [_run([str(programs / program), *arguments], tmp_path) for program, *arguments in commands]
    assert "test accuracy" in outputs[0]
    assert "parity holds" in outputs[2]
    assert "Flex operators: 0; other custom operators: 0" in outputs[3]


def test_the_tff_script(tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(import models.*?)```", README, re.DOTALL)
    losses = [float(line.split()[1]) for line in _run([sys.executable, "-c", script], tmp_path).splitlines()]
    assert len(losses) == 5
    assert losses[-1] < losses[0]
