"""Whatever interrupts an install, a whole bundle is current, and the next install works and tidies up."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from device_runtime.bundle import Bundle, open_bundle
from device_runtime.installation import Installation

PROGRAM = Path(__file__).with_name("power_loss.py")
NAMES = {"bundles", "current", "installation.lock", "previous", "state", "states"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="an install is for Linux")


def reports(before: Path, new: Path, folder: Path, mode: str) -> list[dict[str, Any]]:
    folder.mkdir()
    arguments = [sys.executable, str(PROGRAM), str(before), str(new), str(folder), mode]
    done = subprocess.run(arguments, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("first", "mode"), [(True, "lose"), (True, "reorder"), (False, "keep"), (False, "lose")])
def test_at_every_step(first: bool, mode: str, digits_bundle: Bundle, digits_2: Bundle, tmp_path: Path) -> None:
    before = tmp_path / "before"
    before.mkdir()
    if not first:
        Installation(before).install(digits_bundle.path)
    old, new = None if first else digits_bundle.identity, digits_2.identity
    steps = reports(before, digits_2.path, tmp_path / "work", mode)
    assert len(steps) > 25
    assert [step["exit"] for step in steps] == [77] * (len(steps) - 1) + [0]
    switched = [step["current"] == new for step in steps]
    assert switched == sorted(switched) and not switched[0] and switched[-1]  # once, and for good
    assert switched.count(True) < len(steps) / 2
    for step in steps:
        assert step["current"] in (old, new)
        assert step["read"] == step["current"]
        assert step["again"] == ("unchanged" if step["current"] == new else "installed")
        assert step["after"] == new
        assert (step["bundles"], step["states"]) == (1 if first else 2, 1)
        assert set(step["names"]) == NAMES


def test_killed_at_random(digits_bundle: Bundle, digits_2: Bundle, tmp_path: Path) -> None:
    root, wanted = tmp_path / "root", {digits_bundle.identity, digits_2.identity}
    Installation(root).install(digits_bundle.path)
    program = [str(Path(sys.executable).with_name("pocketfed-device")), "install", str(digits_2.path)]
    started = time.monotonic()
    subprocess.run([*program, "--root", str(tmp_path / "other")], check=True, capture_output=True, timeout=300)
    seconds, rng = time.monotonic() - started, random.Random(4)
    for _ in range(8):
        process = subprocess.Popen([*program, "--root", str(root)], stdout=subprocess.DEVNULL)
        try:
            process.wait(seconds * rng.uniform(0.3, 1.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert open_bundle(root / "current").identity in wanted
    assert Installation(root).install(digits_2.path).action in ("installed", "unchanged")
    assert open_bundle(root / "current").identity == digits_2.identity
    assert open_bundle(root / "previous").identity == digits_bundle.identity
    assert {path.name for path in root.iterdir()} == NAMES
    assert len(list((root / "bundles").iterdir())) == 2
