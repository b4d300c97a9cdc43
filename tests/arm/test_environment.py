"""Building the ARM environments: what is missing is named, and what was interrupted is built anew. Needs no qemu."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.arm.environment import MACHINES, ROOT, UV, BuildError, built_once, environment, locked_wheels

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="environments are built on Linux")

Tools = Callable[..., str]


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    """`tools(name, …)`: a PATH on which there are these programs alone."""

    def make(*names: str) -> str:
        folder = tmp_path / "tools"
        folder.mkdir()
        for name in names:
            (folder / name).write_text("#!/bin/sh\necho 'W: before'>&2\necho \"E: $0 can't\" >&2\nexit 7\n")
            (folder / name).chmod(0o755)
        return str(folder)

    return make


def _refusal(path: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "tests.arm.environment"],
        cwd=ROOT, env={"PATH": path}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (2, "")
    return result.stderr


def test_qemu_is_missing(tools: Tools, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tests.arm.environment.KEYRING", tmp_path / "no.gpg")
    monkeypatch.setenv("PATH", tools("apt-get", "dpkg-deb", "qemu-arm-static"))
    with pytest.raises(BuildError) as caught:
        environment(MACHINES["aarch64"])
    assert str(caught.value) == (
        "the ARM tests need packages that are missing here: apt-get install qemu-user-static debian-archive-keyring"
    )


def test_another_distribution(tools: Tools) -> None:
    assert _refusal(tools("qemu-arm-static", "qemu-aarch64-static")) == (
        "test-arm: the ARM tests need apt-get and dpkg-deb: run them on Debian or Ubuntu, or in a container\n"
    )


def test_the_mirror_does_not_answer(tools: Tools, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key.gpg").touch()
    monkeypatch.setattr("tests.arm.environment.KEYRING", tmp_path / "key.gpg")
    monkeypatch.setattr("tests.arm.environment.FOLDER", tmp_path / "arm")
    monkeypatch.setenv("POCKETFED_DEBIAN_MIRROR", "http://mirror.example/debian")
    path = tools("apt-get", "dpkg-deb", "qemu-arm-static")
    monkeypatch.setenv("PATH", f"{path}:/usr/bin:/bin")
    with pytest.raises(BuildError) as caught:
        environment(MACHINES["armv7"])
    assert str(caught.value) == (
        "apt-get failed (from http://mirror.example/debian; another mirror is named by POCKETFED_DEBIAN_MIRROR):"
        f" E: {path}/apt-get can't"
    )


def test_a_build_that_ends_too_early_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    def interrupted(scratch: Path) -> None:
        (scratch / "half").touch()
        raise KeyboardInterrupt

    def whole(scratch: Path) -> None:
        (scratch / "whole").touch()

    def never(scratch: Path) -> None:
        raise AssertionError("it is there already")

    with pytest.raises(KeyboardInterrupt):
        built_once(tmp_path / "arm", "board", "1", interrupted)
    assert not (tmp_path / "arm" / "board-1").exists()
    path = built_once(tmp_path / "arm", "board", "1", whole)
    assert [file.name for file in path.iterdir()] == ["whole"]
    assert built_once(tmp_path / "arm", "board", "1", never) == path
    newer = built_once(tmp_path / "arm", "board", "2", whole)
    assert sorted(file.name for file in (tmp_path / "arm").iterdir()) == ["board-2", "board.lock"]
    assert newer.name == "board-2"


def test_wheels_are_those_of_the_lock_file_with_their_hashes() -> None:
    for machine in MACHINES.values():
        for name, line in zip(machine.wheels, locked_wheels(machine.wheels), strict=True):
            assert line.startswith(f"{name}==")
            assert " --hash=sha256:" in line
    assert UV.is_file()
