"""A checkpoint holds a state to the bit, is whole or not there, and says what is wrong with it."""

from __future__ import annotations

import collections
import json
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from device_runtime.errors import InputError
from tff_sim.experiments.checkpoint import Checkpoint, flatten_state, read_checkpoint, restore_state, write_checkpoint
from tff_sim.experiments.results import COUNTS, RoundMetrics


class _Moments(NamedTuple):
    first: Any
    second: Any


def _state() -> Any:
    rng = np.random.default_rng(0)
    return collections.OrderedDict(
        weights=[rng.random((3, 2)).astype(np.float32), np.array([np.nan, -0.0, np.inf], np.float32)],
        aggregator=(),
        finalizer=_Moments(np.float32(0.1), {"b": np.int64(7), "a": np.array([True, False])}),
    )


def _write(path: Path) -> Checkpoint:
    row = RoundMetrics(1, 0.1 + 0.2, float("nan"), 0.5, 2.5, 3, 30, 12, 24, {"late": 2})
    experiment = {"model": "m", "rounds": 1, "work": {"epochs": 1}}
    checkpoint = Checkpoint(experiment, 1, 0.125, [row], flatten_state(_state()))
    write_checkpoint(path, checkpoint)
    return checkpoint


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.zip"
    written = _write(path)
    read = read_checkpoint(path)
    assert (read.experiment, read.round, read.initial_accuracy) == (written.experiment, 1, 0.125)
    assert [repr(row.cells()) for row in read.rows] == [repr(row.cells()) for row in written.rows]
    state = restore_state(_state(), read.leaves, path)
    assert type(state["finalizer"]) is _Moments
    for one, other in zip(flatten_state(state), flatten_state(_state()), strict=True):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.zip"]


def test_no_pickle_is_written_or_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.zip"
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write_checkpoint(path, Checkpoint({}, 1, 0.0, [], [np.array([object()])]))
    assert not path.exists()
    np.savez(tmp_path / "hostile.npz", **{"0": np.array([collections.OrderedDict()])})
    with zipfile.ZipFile(tmp_path / "hostile.npz") as archive, zipfile.ZipFile(path, "w") as hostile:
        hostile.writestr("0.npy", archive.read("0.npy"))
        about = {"format": 1, "experiment": {}, "round": 1, "initial_accuracy": 0, "rows": [], "leaves": 1}
        hostile.writestr("about.json", json.dumps(about))
    with pytest.raises(InputError, match=rf"^{path}: a damaged checkpoint \(Object arrays cannot be loaded"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"rows": []}, "not a row for each round"),
        ({"round": 2}, "not a row for each round"),
        ({"round": "1"}, "can only concatenate str"),
        ({"rows": None}, "'NoneType' object is not iterable"),
        ({"rows": [[1, 2]]}, "zip() argument 2 is shorter than argument 1"),
        ({"rows": [[1, *"abcdefgh", *[0] * len(COUNTS)]]}, "a row has other than numbers"),
        ({"experiment": []}, "no experiment"),
        ({"experiment": {}}, "no experiment"),
        ({"initial_accuracy": {}}, "float() argument must be"),
        ({"leaves": "1"}, "'str' object cannot be interpreted as an integer"),
    ],
)
def test_what_does_not_hold_together_is_damage(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.zip"
    _write(path)
    with zipfile.ZipFile(path) as archive:
        about = json.loads(archive.read("about.json")) | {"leaves": 0} | change
    refused(path, json.dumps(about), problem)


def test_json_without_end_is_damage(tmp_path: Path) -> None:
    refused(tmp_path / "checkpoint.zip", "[" * 100_000, "maximum recursion depth exceeded")
    refused(tmp_path / "checkpoint.zip", "[]", "list indices must be integers")


def refused(path: Path, about: str, problem: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("about.json", about)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: a damaged checkpoint \\({re.escape(problem)}"):
        read_checkpoint(path)


def test_any_bit_may_turn_over(tmp_path: Path) -> None:
    """What a medium damages is found, or was of no account; nothing else is raised."""
    path = tmp_path / "checkpoint.zip"
    _write(path)
    whole = path.read_bytes()
    leaves = read_checkpoint(path).leaves
    for position in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
            try:
                read = read_checkpoint(path)
            except InputError as error:
                assert str(error).startswith(f"{path}: ")
                assert str(error).endswith(": remove it to begin anew")
            else:
                assert [np.asarray(leaf).tobytes() for leaf in read.leaves] == [
                    np.asarray(leaf).tobytes() for leaf in leaves
                ]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_damage_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.zip"
    _write(path)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo("0.npy")
        data[info.header_offset + 30 + len(info.filename) + len(info.extra) + info.file_size // 2 + 60] ^= 1
    damaged = {"cut": bytes(data[: len(data) // 2]), "flip": bytes(data), "empty": b"", "text": b"PK, or not"}
    path.write_bytes(damaged[damage])
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: a damaged checkpoint (")
    assert str(caught.value).endswith("): remove it to begin anew")


def test_another_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("about.json", json.dumps({"format": 9}))
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    assert str(caught.value) == (
        f"{path}: a checkpoint of format 9, of another version of pocketfed; this one reads 1: remove it to begin anew"
    )


def test_a_state_of_another_algorithm_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.zip"
    leaves = _write(path).leaves
    *before, matrix, last = leaves
    for other in ([*leaves, last], [*before, matrix, last.astype(np.float64)], [*before, matrix.T, last]):
        with pytest.raises(InputError, match=rf"^{path}: its state is not that of this experiment's algorithm: "):
            restore_state(_state(), other, path)


def test_a_disk_that_is_full_leaves_the_checkpoint_before(small_disk: Path) -> None:
    path = small_disk / "checkpoint.zip"
    _write(path)
    before = path.read_bytes()
    with pytest.raises(InputError) as caught:
        write_checkpoint(path, Checkpoint({}, 2, 0.0, [], [np.zeros(1 << 20)]))
    assert str(caught.value) == (f"{path}: can't write it: No space left on device; make room there, or change --out")
    assert path.read_bytes() == before
    assert not (small_disk / "checkpoint.zip.new").exists()


def test_a_missing_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^{tmp_path / 'no.zip'}: can't read it: No such file or directory$"):
        read_checkpoint(tmp_path / "no.zip")
