"""Pictures over rounds: test accuracy, the same for an experiment and the demo's report; losses and counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tff_sim.experiments.results import RoundMetrics

_STEP = 0.05  # the accuracy axis begins at a multiple of it


@dataclass(frozen=True)
class Line:
    """One curve: accuracies from round 0 on, and how it is drawn; a line of a larger layer lies above."""

    label: str
    accuracies: Sequence[float]
    color: str = "#1f6feb"
    style: str = "-"
    width: float = 2.0
    layer: int = 2


def accuracy_figure(lines: Sequence[Line], title: str = "", target: float | None = None) -> Any:
    """A matplotlib figure; the accuracy axis begins below the first round's, since round 0 is but a guess.

    Args:
        lines: at least one, each with at least one accuracy.
        title: above the picture.
        target: drawn as a horizontal line.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for line in lines:
        axes.plot(
            range(len(line.accuracies)),
            line.accuracies,
            color=line.color,
            linestyle=line.style,
            linewidth=line.width,
            zorder=line.layer,
            label=line.label,
        )
    if target is not None:
        axes.axhline(target, color="#8b949e", linestyle="--", linewidth=1, label=f"target {target:.1%}")
    shown = [accuracy for line in lines for accuracy in (line.accuracies[1:] or line.accuracies)]
    bottom = max(0.0, math.floor(min([*shown, target or 1.0]) / _STEP - 0.5) * _STEP)
    last = max(len(line.accuracies) for line in lines) - 1
    _over_rounds(axes, max(last, 1) * 1.01, "test accuracy")
    axes.set_title(title, fontsize=12)
    axes.set_ylim(bottom, 1)
    axes.legend(loc="lower right", frameon=False, fontsize=12)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


def round_figure(rows: Sequence[RoundMetrics], title: str = "") -> Any:
    """A matplotlib figure of training and test loss; below them, where there are any, what was counted of clients."""
    from matplotlib.figure import Figure

    rounds = [row.round for row in rows]
    # Those available are the population's share, far above all else.
    names = [name for name in rows[0].counts if name != "available" and any(row.counts[name] for row in rows)]
    figure = Figure(figsize=(7, 7.4 if names else 4.2), layout="constrained")
    losses, *counts = figure.subplots(2 if names else 1, squeeze=False)[:, 0]
    losses.plot(rounds, [row.train_loss for row in rows], color="#8b949e", label="training, on the clients")
    losses.plot(rounds, [row.test_loss for row in rows], color="#1f6feb", linewidth=2, label="test")
    losses.set_title(title, fontsize=12)
    labels = [(losses, "loss"), *((axes, "clients") for axes in counts)]
    for axes in counts:
        axes.plot(rounds, [row.clients for row in rows], color="#1f6feb", linewidth=2, label="clients that count")
        for name in names:
            axes.plot(rounds, [row.counts[name] for row in rows], label=name.replace("_", " "))
        axes.set_ylim(bottom=0)
    for axes, label in labels:
        _over_rounds(axes, max(rounds[-1], 1) * 1.01, label)
        axes.legend(frameon=False, fontsize=11)
    return figure


def _over_rounds(axes: Any, last: float, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("round", fontsize=12)
    axes.set_ylabel(label, fontsize=12)
    axes.set_xlim(0, last)
    axes.tick_params(labelsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
