"""The folder of a run: what is in it, and whether to begin there, to go on, or to leave it alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_runtime.errors import InputError
from device_runtime.files import Lock, replace_whole
from tff_sim.experiments.checkpoint import FILE, Checkpoint, read_checkpoint
from tff_sim.experiments.settings import differences, flat

EXPERIMENT = "experiment.toml"
SUMMARY = "summary.json"
MAY_DIFFER = frozenset({"rounds", "target_accuracy", "data.data_dir", "data.partition_file", "keras.source"})
"""Keys that may be otherwise when a run goes on: when it ends, and where its data and its model are."""


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        checkpoint: after which it goes on; None begins with round 1.
        summary: of the run, where there is nothing more to do.
    """

    checkpoint: Checkpoint | None = None
    summary: dict[str, Any] | None = None


class RunFolder:
    """One run's folder.

    A finished run has a summary and is replaced by the next; one that was broken off has a checkpoint alone, and hours
    of work may be in it: it is never replaced without being told to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / FILE
        self._lock = Lock(path / ".lock")

    def look(self, tables: dict[str, Any], resume: bool, overwrite: bool) -> Start:
        """What is to be done there; nothing is written.

        Args:
            tables: of the experiment; see `tff_sim.experiments.file.experiment_tables`.
            resume: go on where there is something to go on with, else begin.
            overwrite: begin, whatever is there.

        Raises:
            InputError: a run was broken off there, and neither was asked for; or what is there is another experiment's.
        """
        finished = (self.path / SUMMARY).is_file()
        if overwrite or not (self.checkpoint.is_file() or (resume and finished)):
            return Start()
        if not resume:
            if finished:
                return Start()
            done = read_checkpoint(self.checkpoint)
            raise InputError(
                f"{self.path}: holds a run that was broken off after round {done.round} of"
                f" {done.experiment.get('rounds')}: go on with it by --resume, replace it by --overwrite, or choose"
                " another --out"
            )
        if not self.checkpoint.is_file():
            raise InputError(f"{self.path}: its run is finished, and has no {FILE} to go on with; change --out")
        checkpoint = read_checkpoint(self.checkpoint)
        self._require_same(checkpoint.experiment, tables)
        if not _is_over(checkpoint, tables):
            return Start(checkpoint)
        if finished:
            with contextlib.suppress(OSError, ValueError):
                summary = json.loads((self.path / SUMMARY).read_text())
                if summary.get("target_accuracy") == tables.get("target_accuracy"):
                    return Start(checkpoint, summary)
        return Start(checkpoint)

    def require_data(self, checkpoint: Checkpoint, identity: str) -> None:
        """Raise `InputError` where the run had other data than those of this `FederatedData.identity`."""
        if checkpoint.data not in (None, identity):
            raise InputError(
                f"{self.path}: its run had other examples, or other clients had them, than those of here (their SHA-256"
                " differs): give it its own, choose another --out, or remove this one"
            )

    def _require_same(self, there: dict[str, Any], here: dict[str, Any]) -> None:
        different = {key: values for key, values in differences(there, here).items() if key not in MAY_DIFFER}
        if different:
            told = "; ".join(
                "its model has other layers or weights than the one here"
                if key == "keras.sha256" and None not in (old, new)
                else f"{key} is {_told(old)} there, and {_told(new)} here"
                for key, (old, new) in different.items()
            )
            advice = "choose another --out, or remove this one"
            if different.keys() == {"schedule.rounds"} and different["schedule.rounds"][0] is not None:
                advice = f"--lr-rounds {different['schedule.rounds'][0]} goes on with it as it was"
            raise InputError(f"{self.path}: holds another experiment: {told}; {advice}")

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Keep other processes out for the time of the block.

        Raises:
            InputError: another process works there, or the folder can't be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            taken = not self._lock.acquire()
        except OSError as error:
            raise InputError(f"{self.path}: can't write there: {error.strerror}; change --out") from None
        if taken and Lock.available:
            raise InputError(f"{self.path}: another process simulates into it; wait for it, or change --out")
        try:
            yield
        finally:
            self._lock.release()

    def begin(self, experiment_toml: bytes, start: Start) -> None:
        """Say what runs there; the checkpoint of another run goes first, so that nothing goes on from it.

        Raises:
            InputError: the folder can't be written.
        """
        try:
            if start.checkpoint is None:
                self.checkpoint.unlink(missing_ok=True)
                (self.path / SUMMARY).unlink(missing_ok=True)
            replace_whole(self.path / EXPERIMENT, [experiment_toml])
        except OSError as error:
            raise InputError(f"{self.path}: can't write there: {error.strerror}; change --out") from None

    def give_up(self) -> None:
        """There is nothing to go on with: the training diverged, and would again."""
        self.checkpoint.unlink(missing_ok=True)


def _is_over(checkpoint: Checkpoint, tables: dict[str, Any]) -> bool:
    """Whether the rounds so far are all of the experiment, or reached its target."""
    target = dict(flat(tables)).get("target_accuracy")
    accuracies = [row.test_accuracy for row in checkpoint.rows]
    return checkpoint.round >= int(tables["rounds"]) or (target is not None and max(accuracies) >= target)


def _told(value: Any) -> str:
    return "not set" if value is None else repr(value)
