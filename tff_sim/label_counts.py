"""How often each client has each label, and what that says of a population."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int32]

MOST_LABELS = 1024  # above that, a table of clients × labels is larger than the data
_ROWS = 1 << 16


def count_labels(
    offsets: npt.NDArray[np.int64], labels: Callable[[int, int], npt.NDArray[Any]], largest: int
) -> Counts | None:
    """A table of clients × labels.

    Args:
        offsets: client k has the examples from offsets[k] on, below offsets[k + 1]; [K + 1].
        labels: gives those of the examples from one number on, below another, whole numbers [m] or [m, …].
        largest: of all labels.

    Returns:
        int32 [K, largest + 1], where an example with several labels counts several times; None where labels are
        more than 1,024, or negative.
    """
    clients, classes = len(offsets) - 1, largest + 1
    if classes > MOST_LABELS:
        return None
    counts = np.zeros((clients, classes), np.int32)
    first = 0
    while first < clients:
        # As many clients as fit into some rows, one at least.
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + _ROWS, "right")) - 1)
        found = labels(int(offsets[first]), int(offsets[last]))
        if found.size and found.min() < 0:
            return None
        a_row = found[0].size if len(found) else 1
        owners = np.repeat(np.arange(last - first), np.diff(offsets[first : last + 1]) * a_row)
        places = owners * classes + found.reshape(-1)
        counts[first:last] = np.bincount(places, minlength=(last - first) * classes).reshape(-1, classes)
        first = last
    return counts


@dataclass(frozen=True)
class Summary:
    """What a population looks like.

    Attributes:
        clients, examples: how many.
        smallest, median, largest: numbers of examples of a client.
        gini: of these numbers (Gini coefficient): 0 where all clients have as many, towards 1 where one has all.
        labels: how often each label occurs, from label 0 on; None where labels are not classes.
        labels_per_client: least, median and most different labels of a client.
        label_distance: the mean over clients of the total variation distance, from 0 to 1, of a client's labels to
            all labels: 0 where each client has the same mixture.
    """

    clients: int
    examples: int
    smallest: int
    median: float
    largest: int
    gini: float
    labels: tuple[int, ...] | None
    labels_per_client: tuple[int, float, int] | None
    label_distance: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """What it says, in words, as a table of two columns."""
        rows = [
            ("clients", f"{self.clients:,}"),
            ("examples", f"{self.examples:,}"),
            ("a client's examples", f"{self.smallest:,} to {self.largest:,}, median {self.median:,g}"),
            ("imbalance of sizes (Gini)", f"{self.gini:.3f}"),
        ]
        if self.labels is not None and self.labels_per_client is not None:
            least, median, most = self.labels_per_client
            rows += [
                ("labels", f"{np.count_nonzero(self.labels)}"),
                ("a client's labels", f"{least} to {most}, median {median:g}"),
                ("labels' distance to all (mean total variation)", f"{self.label_distance:.3f}"),
            ]
        return rows

    def __str__(self) -> str:
        return "\n".join(f"{title}: {value}" for title, value in self.rows())


def summarise(sizes: npt.NDArray[np.int64], counts: Counts | None) -> Summary:
    """Describe a population by its clients' numbers of examples [K ≥ 1] and their counts of labels [K, L]."""
    labels, per_client, distance = None, None, None
    if counts is not None:
        total = np.zeros(counts.shape[1], np.int64)
        different = np.empty(len(counts), np.int64)
        for rows in _pieces(counts):
            total += counts[rows].sum(axis=0)
            different[rows] = np.count_nonzero(counts[rows], axis=1)
        overall = total / max(total.sum(), 1)
        distances = 0.0
        for rows in _pieces(counts):
            shares = counts[rows] / np.maximum(counts[rows].sum(axis=1, keepdims=True), 1)
            distances += float(np.abs(shares - overall).sum()) / 2
        labels = tuple(total.tolist())
        per_client = (int(different.min()), float(np.median(different)), int(different.max()))
        distance = distances / len(counts)
    return Summary(
        clients=len(sizes),
        examples=int(sizes.sum()),
        smallest=int(sizes.min()),
        median=float(np.median(sizes)),
        largest=int(sizes.max()),
        gini=gini(sizes),
        labels=labels,
        labels_per_client=per_client,
        label_distance=distance,
    )


def gini(sizes: npt.NDArray[np.int64]) -> float:
    """The Gini coefficient of numbers ≥ 0: half their mean absolute difference, over their mean."""
    ordered = np.sort(sizes).astype(np.float64)
    count, total = len(ordered), ordered.sum()
    if total == 0:
        return 0.0
    ranks = np.arange(1, count + 1)
    return float(2 * (ranks * ordered).sum() / (count * total) - (count + 1) / count)


def _pieces(counts: Counts) -> list[slice]:
    rows = max(1, (1 << 22) // max(counts.shape[1], 1))
    return [slice(start, start + rows) for start in range(0, len(counts), rows)]
