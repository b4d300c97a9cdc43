"""A population as a picture: how many examples clients have, which labels there are, and who has which."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tff_sim.label_counts import Counts

_COLOR = "#1f6feb"
_MOST_ROWS = 300  # of the heat map, which has no more lines of pixels


def population_figure(sizes: npt.NDArray[np.int64], counts: Counts | None, title: str) -> Any:
    """A matplotlib figure.

    Args:
        sizes: the clients' numbers of examples [K].
        counts: their labels [K, L]; without them sizes are all that is drawn.
        title: above it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 if counts is None else 13, 4), layout="constrained")
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(1, 1 if counts is None else 3, squeeze=False)[0]
    _draw_sizes(axes[0], sizes)
    if counts is not None:
        _draw_labels(axes[1], counts.sum(axis=0, dtype=np.int64))
        _draw_shares(figure, axes[2], counts)
    return figure


def client_shares(counts: Counts) -> npt.NDArray[np.float64]:
    """Each client's share of each label, in rows that add up to 1; many clients are put together to 300 rows.

    Clients are sorted by the label that they have most of, so that a mixture looks even and a skew does not.
    """
    ordered = counts[np.argsort(counts.argmax(axis=1), kind="stable")]
    starts = np.unique(np.linspace(0, len(ordered), min(len(ordered), _MOST_ROWS), endpoint=False).astype(int))
    rows = np.add.reduceat(ordered, starts, axis=0, dtype=np.int64)
    shares: npt.NDArray[np.float64] = rows / np.maximum(rows.sum(axis=1, keepdims=True), 1)
    return shares


def _draw_sizes(axes: Any, sizes: npt.NDArray[np.int64]) -> None:
    axes.plot(np.sort(sizes)[::-1], color=_COLOR, linewidth=2, drawstyle="steps-post")
    axes.set_xlabel("clients, the largest first")
    axes.set_ylabel("examples")
    axes.set_ylim(0, sizes.max() * 1.05)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_labels(axes: Any, labels: npt.NDArray[np.int64]) -> None:
    axes.bar(np.arange(len(labels)), labels, color=_COLOR, width=0.9)
    axes.set_xlabel("label")
    axes.set_ylabel("how often")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_shares(figure: Any, axes: Any, counts: Counts) -> None:
    from matplotlib.ticker import MaxNLocator

    picture = axes.imshow(
        client_shares(counts),
        aspect="auto",
        interpolation="nearest",
        cmap="Blues",
        vmin=0,
        extent=(-0.5, counts.shape[1] - 0.5, len(counts), 0),
    )
    axes.set_xlabel("label")
    axes.set_ylabel("clients, by their commonest label")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(picture, ax=axes, label="share of a client's labels")
