"""Rounds to a target worked out by hand, and the files of a run."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from device_runtime.errors import InputError
from device_runtime.tensors import TensorSpec
from device_runtime.weights import read_weights
from tff_sim.experiments.results import COLUMNS, COUNTS, ResultFiles, RoundMetrics, rounds_to_target, summarise

TENSORS = (TensorSpec("layer/kernel", (2,)),)


def _row(number: int, accuracy: float, seconds: float = 1.0) -> RoundMetrics:
    return RoundMetrics(number, seconds, 0.5, accuracy, 0.6, 2, 20, 100, 200, {"late": 1})


@pytest.mark.parametrize(
    ("initial", "accuracies", "target", "expected"),
    [
        (0.1, [0.3, 0.5], 0.5, 2.0),  # reached exactly at a round's end
        (0.1, [0.3, 0.5], 0.4, 1.5),  # half way through the second round
        (0.1, [0.3], 0.15, 0.25),  # within the first round, from the initial accuracy
        (0.0, [0.6, 0.2, 0.8], 0.7, 2.5),  # made monotone: from the best so far, 0.6, not from 0.2
        (0.4, [0.1, 0.2, 0.6], 0.5, 2.5),  # the best so far is the initial accuracy
        (0.0, [0.2, 0.9, 0.1], 0.9, 2.0),  # what comes after does not matter
        (0.9, [0.1], 0.9, 0.0),  # reached before the first round
        (0.1, [0.3, 0.4], 0.5, None),  # never
        (0.1, [], 0.5, None),
    ],
)
def test_rounds_to_target(initial: float, accuracies: list[float], target: float, expected: float | None) -> None:
    got = rounds_to_target(initial, accuracies, target)
    assert got == (None if expected is None else pytest.approx(expected))


def test_a_summary_tells_what_the_rows_measured() -> None:
    rows = [_row(1, 0.3, 9.0), _row(2, 0.7, 1.0), _row(3, 0.6, 2.0)]
    summary = summarise(rows, 0.1, 0.5, {"codec": "f32"})
    assert summary == {
        "rounds": 3,
        "rounds_to_target": pytest.approx(1.5),
        "final_accuracy": 0.6,
        "best_accuracy": 0.7,
        "seconds_per_round_median": 2.0,
        "upload_bytes": 300,
        "download_bytes": 600,
        "initial_accuracy": 0.1,
        "target_accuracy": 0.5,
        "empty_rounds": 0,
        "counts": dict.fromkeys(COUNTS, 0) | {"late": 3},
        "codec": "f32",
    }
    assert summarise(rows, 0.1, None, {})["rounds_to_target"] is None


def test_what_an_interrupted_run_leaves_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "a" / "run"
    files = ResultFiles(out)
    for number in (1, 2):
        files.add(_row(number, 0.1 * number), (np.full(2, number, np.float32),), TENSORS)
        # before the run is finished: on disk, not in a buffer
        with (out / "metrics.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert [row["round"] for row in rows] == [str(n) for n in range(1, number + 1)]
        assert read_weights(out / "weights.safetensors", TENSORS)[0].tolist() == [number, number]
    assert sorted(path.name for path in out.iterdir()) == ["metrics.csv", "weights.safetensors"]
    files.finish({"model": "m", "dataset": "d"}, 0.0, [_row(1, 0.1), _row(2, 0.2)], 0.15)
    assert json.loads((out / "summary.json").read_text()) == {"model": "m", "dataset": "d"}
    for name in ("accuracy.png", "rounds.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_what_an_earlier_run_left_does_not_pass_for_this_one_s(tmp_path: Path) -> None:
    names = ["metrics.csv", "summary.json", "accuracy.png", "rounds.png", "weights.safetensors", ".weights.safetensors"]
    for name in names:
        (tmp_path / name).write_text("of an earlier run")
    (tmp_path / "notes.txt").write_text("mine")
    ResultFiles(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "notes.txt"]
    assert "earlier" not in (tmp_path / "metrics.csv").read_text()


@pytest.mark.parametrize("name", ["metrics.csv", "summary.json", "accuracy.png", "weights.safetensors"])
def test_a_folder_where_a_file_should_be_is_named_at_the_start(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=rf"^{tmp_path}: can't write there: .*; change --out$"):
        ResultFiles(tmp_path)


def test_a_disk_that_fills_up_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files = ResultFiles(tmp_path)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError) as caught:
        files.add(_row(1, 0.5), (np.zeros(2, np.float32),), TENSORS)
    assert str(caught.value) == f"{tmp_path}: can't write there: No space left on device; change --out"


@pytest.mark.parametrize(("below", "reason"), [("", "File exists"), ("deeper", "Not a directory")])
def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path, below: str, reason: str) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    with pytest.raises(InputError) as caught:
        ResultFiles(taken / below)
    assert str(caught.value) == f"{taken / below}: can't write there: {reason}; change --out"


def test_a_run_that_goes_on_has_its_rounds_as_they_were(tmp_path: Path) -> None:
    rows = [_row(1, 1 / 3, 0.1 + 0.2), _row(2, 2 / 3)]
    files = ResultFiles(tmp_path)
    for row in [*rows, _row(3, 0.9)]:  # the third came after the last checkpoint
        files.add(row, (np.zeros(2, np.float32),), TENSORS)
    again = ResultFiles(tmp_path, rows)
    assert (tmp_path / "weights.safetensors").is_file()
    again.add(_row(3, 0.9), (np.zeros(2, np.float32),), TENSORS)
    with (tmp_path / "metrics.csv").open(newline="") as stream:
        read = list(csv.reader(stream))
    assert tuple(read[0]) == COLUMNS
    assert read[1:] == [[str(cell) for cell in row.cells()] for row in [*rows, _row(3, 0.9)]]


def test_cells_are_of_a_row_and_back() -> None:
    row = _row(1, 0.25)
    again = RoundMetrics.of_cells(json.loads(json.dumps(row.cells())))
    assert again.cells() == row.cells()
    assert again.counts == dict.fromkeys(COUNTS, 0) | {"late": 1}


def test_what_has_no_column_is_not_lost_in_silence() -> None:
    with pytest.raises(ValueError, match=r"^no column for eaten, lost$"):
        RoundMetrics(1, 1.0, 0.5, 0.5, 0.5, 1, 1, 1, 1, {"lost": 1, "late": 1, "eaten": 2}).cells()
