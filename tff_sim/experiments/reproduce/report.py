"""Measured next to published: tables as Markdown, CSV and JSON, and pictures of the curves."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from device_runtime.errors import InputError
from device_runtime.files import replace_whole
from tff_sim.experiments.figure import Line, accuracy_figure
from tff_sim.experiments.reproduce.rows import TABLES, Row
from tff_sim.experiments.results import read_accuracies, rounds_to_target
from tff_sim.experiments.sweep import folder_name


@dataclass(frozen=True)
class Entry:
    """A row and a target, published and measured; rounds are None where the target is not in the paper or not reached.

    Speed-ups are over the row's baseline: its rounds divided by this row's.
    """

    row: str
    about: str
    target: float
    published: float | None
    published_speedup: float | None
    measured: float | None
    measured_speedup: float | None
    best_accuracy: float
    rounds: int
    learning_rate: float
    seed: int
    upload_bytes: int


def write_report(table: str, out: Path) -> list[Entry]:
    """Write ``TABLE.md``, ``.csv``, ``.json`` and ``.png`` of the rows that have been run; what they say.

    Args:
        table: a name in `TABLES`.
        out: folder; a row's run is in ``TABLE/ROW``, or, where rates were swept, in the best one's folder in it.

    Raises:
        InputError: the folder can't be written, or a run's files are damaged.
    """
    rows = TABLES[table]
    folders = {name: folder for name in rows if (folder := run_folder(out / table / name)) is not None}
    keys = [(name, target) for name in folders for target in _targets(name, rows, folders)]
    measured = {(name, target): _rounds(rows[name], folders[name], target) for name, target in keys}
    entries = [_entry(rows, name, target, folders[name], measured) for name, target in keys]
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_whole(out / f"{table}.md", [markdown(entries).encode()])
        replace_whole(out / f"{table}.csv", [_csv(entries).encode()])
        content = json.dumps([asdict(entry) for entry in entries], indent=2, allow_nan=False)
        replace_whole(out / f"{table}.json", [f"{content}\n".encode()])
        _draw(table, folders, out / f"{table}.png", max((entry.target for entry in entries), default=None))
    except OSError as error:
        raise InputError(f"{out}: can't write there: {error.strerror}; change --out") from None
    return entries


def write_figure(name: str, table: str, rows: Sequence[str], out: Path) -> Path | None:
    """Draw the curves of those of the rows that have been run, as ``figures/NAME.png``; None where there are none.

    Raises:
        InputError: the folder can't be written.
    """
    folders = {row: folder for row in rows if (folder := run_folder(out / table / row)) is not None}
    path = out / "figures" / f"{name}.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _draw(name, folders, path, max(TABLES[table][rows[0]].published))
    except OSError as error:
        raise InputError(f"{path}: can't write it: {error.strerror}; change --out") from None
    return path if folders else None


def run_folder(folder: Path) -> Path | None:
    """Where a row's finished run is: after a sweep in the folder of its best rate, else there; None where it is not.

    A sweep has the row's own rate among its own, so what was run before at that rate alone is not better.
    """
    try:
        best = json.loads((folder / "sweep.json").read_text())["best"]
        if best is not None:
            return folder / folder_name(best["learning_rate"])
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / 'sweep.json'}: not a sweep's file: {error!r}") from None
    return folder if (folder / "summary.json").is_file() else None


def _targets(name: str, rows: Mapping[str, Row], folders: Mapping[str, Path]) -> list[float]:
    """The paper's, and those that a row of the same baseline was run to, where the paper's took too long."""
    group = rows[name].baseline or name
    targets = set(rows[name].published)
    for other, folder in folders.items():
        if (rows[other].baseline or other) == group:
            own = json.loads((folder / "summary.json").read_text()).get("target_accuracy")
            targets |= set() if own is None else {own}
    return sorted(targets)


def _rounds(row: Row, folder: Path, target: float) -> float | None:
    initial, *accuracies = read_accuracies(folder)
    rounds = rounds_to_target(initial, accuracies, target)
    return None if rounds is None else rounds * row.updates


def _entry(
    rows: Mapping[str, Row],
    name: str,
    target: float,
    folder: Path,
    measured: Mapping[tuple[str, float], float | None],
) -> Entry:
    row, summary = rows[name], json.loads((folder / "summary.json").read_text())
    baseline = row.baseline
    published = None if baseline is None else rows[baseline].published.get(target)
    return Entry(
        row=name,
        about=row.about,
        target=target,
        published=row.published.get(target),
        published_speedup=_ratio(published, row.published.get(target)),
        measured=measured[name, target],
        measured_speedup=None if baseline is None else _ratio(measured.get((baseline, target)), measured[name, target]),
        best_accuracy=summary["best_accuracy"],
        rounds=summary["rounds"],
        learning_rate=summary["learning_rate"],
        seed=summary["seed"],
        upload_bytes=summary["upload_bytes"],
    )


def _ratio(rounds: float | None, own: float | None) -> float | None:
    return None if rounds is None or own is None or own == 0 else rounds / own


def markdown(entries: Sequence[Entry]) -> str:
    """A table, a line an entry."""
    lines = [
        "| row | experiment | target | rounds, paper | rounds, here | speed-up, paper | speed-up, here"
        " | best accuracy | learning rate |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for entry in entries:
        reached = f"not in {entry.rounds}" if entry.measured is None else f"{entry.measured:.1f}"
        cells = (
            f"`{entry.row}`",
            entry.about,
            f"{entry.target * 100:g}%",
            "—" if entry.published is None else f"{entry.published:g}",
            reached,
            _times(entry.published_speedup),
            _times(entry.measured_speedup),
            f"{entry.best_accuracy:.2%}",
            f"{entry.learning_rate:g}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _times(ratio: float | None) -> str:
    if ratio is None or not math.isfinite(ratio):
        return "—"
    return f"{ratio:.1f}×" if ratio >= 2 else f"{ratio:.2f}×"


def _csv(entries: Sequence[Entry]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Entry.__dataclass_fields__))
    writer.writeheader()
    writer.writerows(asdict(entry) for entry in entries)
    return text.getvalue()


def _draw(title: str, folders: Mapping[str, Path], path: Path, target: float | None) -> None:
    lines: list[Any] = [
        Line(name, best_so_far(read_accuracies(folder)), f"C{index % 10}", "-" if index < 10 else "--", 1.5)
        for index, (name, folder) in enumerate(folders.items())
    ]
    if lines:
        accuracy_figure(lines, title, target).savefig(path, dpi=120)


def best_so_far(accuracies: Sequence[float]) -> list[float]:
    """The curve made monotone, as the paper draws it."""
    best: list[float] = []
    for accuracy in accuracies:
        best.append(max(accuracy, best[-1]) if best else accuracy)
    return best
