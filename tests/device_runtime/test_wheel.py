"""The device's wheel in an environment of its own: no TensorFlow, and the same bytes as in the project."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path

import pytest

import device_runtime
from device_runtime.bundle import Bundle
from device_runtime.cli import main

SOURCE = Path(device_runtime.__file__).parent
UV = Path(sys.executable).parent / "uv"
LARGEST = 150_000


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program away from the project's checkout and its environment."""
    others = ("PYTHONPATH", "VIRTUAL_ENV", "XDG_DATA_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in others}
    return subprocess.run(
        [str(argument) for argument in arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def succeed(*arguments: object, cwd: Path) -> str:
    result = run(*arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    succeed(UV, "build", "--wheel", SOURCE, "--out-dir", folder, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def programs(wheel: Path) -> Path:
    """The folder of programs of an environment that has the wheel and what it requires, from the registry."""
    environment = wheel.parent / "environment"
    python = getattr(sys, "_base_executable", sys.executable)  # this environment's own would do, but say less
    succeed(UV, "venv", "--python", python, environment, cwd=wheel.parent)
    folder = environment / ("Scripts" if os.name == "nt" else "bin")
    succeed(UV, "pip", "install", "--python", folder / "python", wheel, cwd=wheel.parent)
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    modules = {name for name in names if ".dist-info/" not in name}
    held = [*SOURCE.rglob("*.py"), *SOURCE.rglob("*.service")]
    assert modules == {f"device_runtime/{path.relative_to(SOURCE).as_posix()}" for path in held}
    assert wheel.stat().st_size < LARGEST


def test_the_wheel_requires_what_a_device_can_carry(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    required = {
        line.replace("<", ">").replace("=", ">").split(">")[0] for line in metadata.get_all("Requires-Dist", [])
    }
    assert required == {"numpy", "tflite-runtime", "ai-edge-litert", "cryptography"}
    assert metadata["Version"] == device_runtime.__version__


def test_the_environment_has_no_tensorflow(programs: Path, tmp_path: Path) -> None:
    result = run(programs / "python", "-c", "import tensorflow", cwd=tmp_path)
    assert result.returncode == 1
    assert "ModuleNotFoundError: No module named 'tensorflow'" in result.stderr
    where = succeed(programs / "python", "-c", "import device_runtime; print(device_runtime.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(programs.parent)


def test_the_device_passes_the_self_test(programs: Path, digits_bundle: Bundle, tmp_path: Path) -> None:
    told = succeed(programs / "pocketfed-device", "selftest", digits_bundle.path, cwd=tmp_path)
    assert told.startswith("self-test passed on ")


def test_the_device_writes_the_project_s_update_byte_for_byte(
    programs: Path, digits_bundle: Bundle, examples_file: Callable[[int, int], Path], tmp_path: Path
) -> None:
    arguments = ["train", str(digits_bundle.path), "--data", str(examples_file(23, 0)), "--codec", "q8", "--seed", "5"]
    succeed(programs / "pocketfed-device", *arguments, "--out", "there", cwd=tmp_path)
    assert main([*arguments, "--out", str(tmp_path / "here")]) == 0
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
