"""Whatever happens to a file of any format: what is loaded is fit to train on, or one line names the file."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.tff_sim.damage import FOLDERS, damage, survive

_TIMES = 150


@pytest.mark.parametrize("name", list(FOLDERS))
def test_damaged_files_are_refused_in_a_line_or_are_as_good(name: str, tmp_path: Path) -> None:
    folder, whole = tmp_path / "data", tmp_path / "whole"
    folder.mkdir()
    spec = FOLDERS[name](folder)
    assert survive(spec) == ""
    shutil.copytree(folder, whole)
    refused = 0
    for seed in range(_TIMES):
        path, way = damage(folder, random.Random(seed))
        try:
            line = survive(spec)
        except Exception as error:
            error.add_note(f"{path.name}, {way}, seed {seed}")
            raise
        assert str(folder) in line or not line, f"{line} ({path.name}, {way}, seed {seed})"
        refused += line != ""
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
    assert 0 < refused <= _TIMES
