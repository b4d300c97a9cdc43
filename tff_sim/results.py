"""What an experiment measured, and its files: metrics.csv, summary.json, accuracy.png, weights.safetensors."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from device_runtime.errors import InputError
from device_runtime.tensors import TensorSpec, Weights
from device_runtime.weights import dump_weights
from tff_sim.figure import Line, accuracy_figure


@dataclass(frozen=True)
class RoundMetrics:
    """A row of metrics.csv. Bytes are those of all the round's clients, as the device's codec encodes them."""

    round: int
    seconds: float
    train_loss: float
    test_accuracy: float
    test_loss: float
    clients: int
    examples: int
    upload_bytes: int
    download_bytes: int


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


_FILES = ("metrics.csv", "summary.json", "accuracy.png", "weights.safetensors", ".weights.safetensors")


class ResultFiles:
    """The files of one run in one folder, written as the rounds come, so that an interrupted run keeps its own.

    Raises:
        InputError: the folder can't be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            for name in _FILES:  # an earlier run's would pass for this one's if it were interrupted
                (folder / name).unlink(missing_ok=True)
            self._append([field.name for field in fields(RoundMetrics)])

    def add(self, metrics: RoundMetrics, weights: Weights, tensors: Sequence[TensorSpec]) -> None:
        """Append a round's row, and replace the checkpoint."""
        with self._writing():
            self._append(asdict(metrics).values())
            scratch = self.folder / ".weights.safetensors"
            scratch.write_bytes(dump_weights(weights, tensors))
            scratch.replace(self.folder / "weights.safetensors")

    def finish(self, summary: dict[str, Any], accuracies: Sequence[float], target: float | None) -> None:
        """Write the summary and the picture: `accuracies` from round 0 on."""
        title = f"{summary['model']} on {summary['dataset']}"
        figure = accuracy_figure([Line("simulated", accuracies)], title, target)
        with self._writing():
            (self.folder / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
            figure.savefig(self.folder / "accuracy.png", dpi=120)

    def _append(self, row: Iterable[object]) -> None:
        with (self.folder / "metrics.csv").open("a", newline="") as stream:
            csv.writer(stream).writerow(row)

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
        **about,
    }
