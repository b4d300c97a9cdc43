"""The jobs of docs/ci.md: their YAML parses, and their commands do what the page says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the jobs are for runners with a POSIX shell")


def _github() -> dict[str, Any]:
    job: dict[str, Any] = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0])["jobs"]["parity"]
    return job


def _gitlab() -> dict[str, Any]:
    job: dict[str, Any] = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])["parity"]
    return job


def _commands(system: str) -> tuple[list[str], dict[str, str]]:
    """The commands after the set-up, and the variables that they use."""
    if system == "github":
        lines = [step["run"] for step in _github()["steps"] if "run" in step]
        variables = _github()["env"]
    else:
        lines, variables = _gitlab()["script"], _gitlab()["variables"]
    assert lines[0] == "make setup"
    return lines[1:], {"MODEL": variables["MODEL"]}


def _run(system: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """As runners do: one command after the other, up to the first that fails."""
    commands, variables = _commands(system)
    return subprocess.run(
        ["bash", "-e", "-c", "\n".join(commands)],
        cwd=folder,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_both_jobs_say_the_same() -> None:
    assert _commands("github") == _commands("gitlab")
    assert re.search(r"^setup:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_commands_export_and_keep_the_figures(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    run = _run("github", tmp_path)
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "parity.json").read_text(encoding="utf-8"))
    assert report["ok"] is True
    page = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    told = [name for cell in page for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(told) == sorted(report)


@pytest.mark.parametrize("system", ["github", "gitlab"])
def test_a_job_fails_with_parity_and_has_kept_the_figures(system: str, tmp_path: Path) -> None:
    program = tmp_path / ".venv" / "bin" / "pocketfed"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\n[ "$1" = export ] && exit 0\necho \'{"ok": false}\'\nexit 1\n')
    program.chmod(0o755)
    assert _run(system, tmp_path).returncode == 1
    assert json.loads((tmp_path / "parity.json").read_text(encoding="utf-8")) == {"ok": False}


def test_the_figures_are_kept_of_failed_jobs_too() -> None:
    upload = _github()["steps"][-1]
    assert upload["if"] == "always()"
    assert upload["with"]["path"] == "parity.json"
    assert _gitlab()["artifacts"] == {"when": "always", "paths": ["parity.json"]}
