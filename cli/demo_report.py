"""The demo's report: one HTML file that needs nothing else, and its picture."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

# Colour, line, width, and which lies above: what was expected of the fleet is drawn dashed on what it did.
_STYLES = (("#8b949e", "-", 2, 1), ("#24292f", "--", 1.5, 3), ("#f0686b", "-", 5, 2))

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>pocketfed demo</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #1f2328; }
  h1 { font-size: 1.5rem; } svg { width: 100%; height: auto; }
  table { border-collapse: collapse; width: 100%; } .table { overflow-x: auto; }
  th, td { padding: .4rem .6rem; border-bottom: 1px solid #d0d7de; text-align: right; white-space: nowrap; }
  th:first-child, td:first-child { text-align: left; }
</style>
<h1>From a simulation to a fleet: the same training</h1>
<p>The broad curve is a server and five device processes; the dashed curve is what the simulation expected of
them, in float32 and without a network. The devices' updates travelled with $codec.</p>
$picture
<div class="table"><table>
<tr><th></th><th>rounds</th><th>test accuracy</th><th>bytes up</th><th>bytes down</th><th>seconds</th></tr>
$rows
</table></div>
<p>Keras and the device's interpreter, from the same weights over $steps training steps: largest relative
difference $parity. The fleet's weights after $rounds rounds against their simulation: $difference
($codec rounds the updates). Updates took $share of the bytes of float32.</p>
</html>
""")


@dataclass(frozen=True)
class Curve:
    """Test accuracies from round 0 on, and what the rounds cost."""

    name: str
    accuracies: tuple[float, ...]
    upload_bytes: int
    download_bytes: int
    seconds: float

    @property
    def rounds(self) -> int:
        return len(self.accuracies) - 1


def write_report(out: Path, curves: Sequence[Curve], summary: dict[str, Any]) -> None:
    """Write ``report.html`` and ``accuracy.png`` into `out`."""
    figure = _figure(curves)
    figure.savefig(out / "accuracy.png", dpi=120)
    svg = io.StringIO()
    figure.savefig(svg, format="svg")
    rows = "\n".join(
        f"<tr><td>{html.escape(curve.name)}</td><td>{curve.rounds}</td><td>{curve.accuracies[-1]:.2%}</td>"
        f"<td>{curve.upload_bytes:,}</td><td>{curve.download_bytes:,}</td><td>{curve.seconds:.1f}</td></tr>"
        for curve in curves
    )
    page = _PAGE.substitute(
        picture=svg.getvalue()[svg.getvalue().index("<svg") :],
        rows=rows,
        codec=summary["codec"],
        steps=summary["parity"]["steps"],
        parity=f"{summary['parity']['max_rel']:.1e}",
        rounds=summary["rounds"],
        difference=f"{summary['fleet_difference']:.1e}",
        share=f"{summary['upload_bytes'] / summary['upload_bytes_float32']:.1%}",
    )
    (out / "report.html").write_text(page, encoding="utf-8")


def _figure(curves: Sequence[Curve]) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for curve, (colour, line, width, layer) in zip(curves, _STYLES, strict=True):
        axes.plot(
            range(curve.rounds + 1),
            curve.accuracies,
            color=colour,
            linestyle=line,
            linewidth=width,
            zorder=layer,
            label=curve.name,
        )
    axes.set(xlabel="round", ylabel="test accuracy", ylim=(0, 1))
    axes.legend(loc="lower right", frameon=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
