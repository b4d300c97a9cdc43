"""TensorBoard's events of a run, read back from the file."""

from __future__ import annotations

import math
from pathlib import Path

import tensorflow as tf

from tff_sim.experiments.results import RoundMetrics
from tff_sim.experiments.tensorboard import FOLDER, Events


def _row(number: int) -> RoundMetrics:
    return RoundMetrics(number, 0.5, 2.0 / number, 0.1 * number, 3.0, 4, 40, 100, 200, {"late": number})


def _scalars(folder: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for path in sorted((folder / FOLDER).iterdir()):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                steps = found.setdefault(value.tag, {})
                assert event.step not in steps
                steps[event.step] = float(tf.make_ndarray(value.tensor))
    return found


def test_each_round_is_in_the_file_as_it_ends(tmp_path: Path) -> None:
    events = Events(tmp_path)
    for number in (1, 2):
        events.add(_row(number))
        scalars = _scalars(tmp_path)  # before the file is closed
        assert sorted(scalars["test/accuracy"]) == list(range(1, number + 1))
    events.close()
    assert scalars["train/loss"] == {1: 2.0, 2: 1.0}
    assert scalars["count/late"] == {1: 1.0, 2: 2.0}
    assert {name: steps[2] for name, steps in scalars.items() if name.startswith(("round/", "test/"))} == {
        "round/seconds": 0.5, "round/clients": 4, "round/examples": 40, "round/upload_bytes": 100,
        "round/download_bytes": 200, "test/loss": 3.0, "test/accuracy": float(tf.constant(0.2)),
    }  # fmt: skip


def test_a_run_that_goes_on_has_its_earlier_rounds_once(tmp_path: Path) -> None:
    events = Events(tmp_path)
    for number in (1, 2, 3):  # the third without a checkpoint
        events.add(_row(number))
    events.close()
    again = Events(tmp_path, [_row(1), _row(2)])
    again.add(_row(3))
    again.close()
    assert sorted(_scalars(tmp_path)["test/loss"]) == [1, 2, 3]


def test_the_loss_of_a_round_without_reports_is_no_number(tmp_path: Path) -> None:
    events = Events(tmp_path)
    events.add(RoundMetrics(1, 0.5, math.nan, 0.1, 3.0, 0, 0, 0, 200, {}))
    events.close()
    assert math.isnan(_scalars(tmp_path)["train/loss"][1])
