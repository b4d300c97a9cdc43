"""What an experiment measured, and its files: metrics.csv, summary.json, pictures, weights.safetensors."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any

from device_runtime.errors import InputError
from device_runtime.tensors import TensorSpec, Weights
from device_runtime.weights import dump_weights
from tff_sim.experiments.figure import Line, accuracy_figure, round_figure

COUNTS = (
    "available", "selected", "dropped_out", "late", "surplus", "corrupt", "malicious",
    "non_finite", "clipped", "zeroed", "no_step",
)  # fmt: skip
"""What is counted of a round's clients, each a column: in the world, then by the algorithm."""


@dataclass(frozen=True)
class RoundMetrics:
    """A row of metrics.csv. Bytes are those of all the round's clients, as the device's codec encodes them.

    Where nobody reported, the training loss is NaN, and the weights are those of the round before.
    """

    round: int
    seconds: float
    train_loss: float
    test_accuracy: float
    test_loss: float
    clients: int
    examples: int
    upload_bytes: int
    download_bytes: int
    counts: Mapping[str, int] = field(default_factory=dict)

    def cells(self) -> list[Any]:
        """Its values in the order of `COLUMNS`; what was not counted is 0.

        Raises:
            ValueError: something is counted that has no column.
        """
        if unknown := set(self.counts) - set(COUNTS):
            raise ValueError(f"no column for {', '.join(sorted(unknown))}")
        return [getattr(self, name) for name in _MEASURED] + [self.counts.get(name, 0) for name in COUNTS]

    @classmethod
    def of_cells(cls, cells: Sequence[Any]) -> RoundMetrics:
        """The row with these `cells`."""
        measured, counts = cells[: len(_MEASURED)], cells[len(_MEASURED) :]
        named = dict(zip(_MEASURED, measured, strict=True))
        return cls(**named, counts=dict(zip(COUNTS, counts, strict=True)))


_MEASURED = [column.name for column in fields(RoundMetrics) if column.name != "counts"]
COLUMNS = (*_MEASURED, *COUNTS)


def rounds_to_target(initial_accuracy: float, accuracies: Sequence[float], target: float) -> float | None:
    """Rounds until the target, as in McMahan et al. 2017, section 3; None if it was not reached.

    The curve is made monotone (best so far), and the crossing is interpolated linearly between two rounds.
    """
    best = initial_accuracy
    if best >= target:
        return 0.0
    for number, accuracy in enumerate(accuracies, start=1):
        if accuracy >= target:
            return number - 1 + (target - best) / (accuracy - best)
        best = max(best, accuracy)
    return None


def read_accuracies(folder: Path) -> list[float]:
    """Test accuracies of a finished run, from round 0, before the training, on.

    Raises:
        InputError: the folder holds no finished run.
    """
    try:
        initial = json.loads((folder / "summary.json").read_text())["initial_accuracy"]
        with (folder / "metrics.csv").open(newline="") as stream:
            return [initial, *(float(row["test_accuracy"]) for row in csv.DictReader(stream))]
    except OSError as error:
        raise InputError(f"{folder}: no finished run there: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: the files of its run are damaged: {error!r}") from None


_FILES = (
    "summary.json", "metrics.csv", "accuracy.png", "rounds.png", "weights.safetensors", ".weights.safetensors",
)  # fmt: skip


class ResultFiles:
    """The files of one run in one folder, written as the rounds come, so that an interrupted run keeps its own.

    Args:
        folder: made if missing.
        rows: of the rounds before, where a run goes on; all else that an earlier run left is removed.

    Raises:
        InputError: the folder can't be written.
    """

    def __init__(self, folder: Path, rows: Sequence[RoundMetrics] = ()) -> None:
        self.folder = folder
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            for name in _FILES:  # an earlier run's would pass for this one's if it were interrupted
                if not (rows and name == "weights.safetensors"):
                    (folder / name).unlink(missing_ok=True)
            self._append([COLUMNS, *(row.cells() for row in rows)])

    def add(self, metrics: RoundMetrics, weights: Weights, tensors: Sequence[TensorSpec]) -> None:
        """Append a round's row, and replace the weights."""
        with self._writing():
            self._append([metrics.cells()])
            scratch = self.folder / ".weights.safetensors"
            scratch.write_bytes(dump_weights(weights, tensors))
            scratch.replace(self.folder / "weights.safetensors")

    def finish(
        self,
        summary: dict[str, Any],
        initial_accuracy: float,
        rows: Sequence[RoundMetrics],
        target: float | None,
    ) -> None:
        """Draw the pictures and, at last, write the summary: where it is, the run is finished."""
        title = f"{summary['model']} on {summary['dataset']}"
        line = Line("simulated", [initial_accuracy, *(row.test_accuracy for row in rows)])
        with self._writing():
            accuracy_figure([line], title, target).savefig(self.folder / "accuracy.png", dpi=120)
            round_figure(rows, title).savefig(self.folder / "rounds.png", dpi=120)
            scratch = self.folder / ".summary.json"
            scratch.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
            scratch.replace(self.folder / "summary.json")

    def _append(self, rows: Iterable[Iterable[object]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        with (self.folder / "metrics.csv").open("a", newline="") as stream:
            stream.write(text.getvalue())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.folder}: can't write there: {error.strerror}; change --out") from None


def summarise(
    rows: Sequence[RoundMetrics], initial_accuracy: float, target: float | None, about: dict[str, Any]
) -> dict[str, Any]:
    """The content of summary.json: what was measured, then what the experiment was."""
    accuracies = [row.test_accuracy for row in rows]
    return {
        "rounds": len(rows),
        "rounds_to_target": None if target is None else rounds_to_target(initial_accuracy, accuracies, target),
        "final_accuracy": accuracies[-1],
        "best_accuracy": max(accuracies),
        "seconds_per_round_median": median(row.seconds for row in rows),
        "upload_bytes": sum(row.upload_bytes for row in rows),
        "download_bytes": sum(row.download_bytes for row in rows),
        "initial_accuracy": initial_accuracy,
        "target_accuracy": target,
        "empty_rounds": sum(math.isnan(row.train_loss) for row in rows),
        "counts": {name: sum(row.counts.get(name, 0) for row in rows) for name in COUNTS},
        **about,
    }
