"""Small disks for tests of full ones."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """The folder, made and mounted as a file system of this size; the test is skipped where that may not be."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        done = False
    if not done:
        pytest.skip("a small disk can't be mounted here: that takes root's rights")
    try:
        yield folder
    finally:  # after a failure too: nobody can delete the folder before
        subprocess.run(["umount", str(folder)], check=True)
