"""The device's wheel, installed in an emulated Python of each kind of processor."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import device_runtime
from device_runtime.examples import Examples
from tests.arm.device import SECONDS, Device, Run
from tests.arm.environment import MACHINES, UV, environment


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the wheel, built from ``device_runtime/pyproject.toml``, is installed: it is pure Python."""
    folder = tmp_path_factory.mktemp("wheel")
    source = Path(device_runtime.__file__).parent
    build = [str(UV), "build", "--quiet", "--wheel", str(source), "--out-dir", str(folder)]
    subprocess.run(build, check=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    install = [str(UV), "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "installed"), str(wheel)]
    subprocess.run(install, check=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    return folder / "installed"


@pytest.fixture(scope="session", params=MACHINES)
def device(request: pytest.FixtureRequest, packages: Path) -> Device:
    """For each kind of processor, the device that is emulated."""
    return Device(environment(MACHINES[request.param]), packages)


@pytest.fixture
def examples_file(tmp_path: Path, digits_examples: Callable[[int, int], Examples]) -> Path:
    """A ``.npz`` file with 23 examples: two batches of 10, and one of 3."""
    examples = digits_examples(23, 0)
    np.savez(tmp_path / "examples.npz", x=examples.x, y=examples.y)
    return tmp_path / "examples.npz"
