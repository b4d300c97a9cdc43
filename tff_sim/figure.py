"""Test accuracy over rounds as a picture, the same for an experiment and for the demo's report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    from matplotlib.ticker import MaxNLocator, PercentFormatter

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
    axes.set_xlabel("round", fontsize=12)
    axes.set_ylabel("test accuracy", fontsize=12)
    axes.set_title(title, fontsize=12)
    axes.set_xlim(0, max(last, 1) * 1.01)
    axes.set_ylim(bottom, 1)
    axes.tick_params(labelsize=11)
    axes.legend(loc="lower right", frameon=False, fontsize=12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
