"""What the README tells a newcomer to type works as it is written there."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from device_runtime.bundle import Bundle
from device_runtime.examples import Examples
from tff_sim.child_process import dies_with_parent

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


def test_a_fleet_by_hand(
    digits_bundle: Bundle, digits_examples: Callable[[int, int], Examples], tmp_path: Path
) -> None:
    """From the server to the weights that the fleet has learned, in fewer rounds, at another port."""
    first = README.index("    pocketfed serve ")
    lines = re.findall(r"^    (pocketfed.*)$", README[first : README.index("**Examples of your own**")], re.MULTILINE)
    serve, *others = [shlex.split(line, comments=True) for line in lines]
    programs = Path(sys.executable).parent
    (tmp_path / "bundles").symlink_to(digits_bundle.path.parent)
    (tmp_path / "demo" / "run" / "fleet").mkdir(parents=True)
    for number in (0, 1):
        examples = digits_examples(12, number)
        np.savez(tmp_path / f"demo/run/fleet/device-{number}.npz", x=examples.x, y=examples.y)
    arguments = [*serve[1:], "--port", "0", "--rounds", "3", "--retry-seconds", "0.1"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            dies_with_parent([str(programs / serve[0]), *arguments]),
            cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    assert server.stdout is not None
    try:
        with server.stdout as stdout:
            url = stdout.readline().removeprefix("listening on ").strip()
        words = {"http://127.0.0.1:8080": url, "10": "3", "7": "1"}
        devices = []
        for program, command, *rest in others:
            told = [words.get(word, word) for word in rest]
            if command == "export":  # is tested above
                continue
            if program == "pocketfed":
                told = ["--server", url, *told]
            call = [str(programs / program), command, *told]
            if command == "run":
                call += ["--cache", str(tmp_path / "cache"), "--root", str(tmp_path / "root")]
                devices.append(subprocess.Popen(dies_with_parent(call), cwd=tmp_path, stdin=subprocess.DEVNULL))
                if len(devices) == 2:
                    assert [device.wait(300) for device in devices] == [0, 0]
                continue
            if program == "pocketfed-device":
                call += ["--cache", str(tmp_path / "cache")]
            output = _run(call, tmp_path)
            if command == "enrol" and program == "pocketfed":
                words |= {f"CODE-{number}": code for number, code in enumerate(output.splitlines())}
            if command == "rollback":
                assert output.startswith("version 4 has the weights of version 1: ")
        assert (tmp_path / "fleet.safetensors").stat().st_size > 4 * 4810
        assert _run([str(programs / "pocketfed"), "devices", "--server", url], tmp_path).count("revoked") == 1
    finally:
        server.terminate()
        assert server.wait(60) == 0


def test_the_tff_script(tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(import models.*?)```", README, re.DOTALL)
    losses = [float(line.split()[1]) for line in _run([sys.executable, "-c", script], tmp_path).splitlines()]
    assert len(losses) == 5
    assert losses[-1] < losses[0]
