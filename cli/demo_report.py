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
_STYLES = (("#8b949e", "-", 2.0, 1), ("#24292f", "--", 1.5, 3), ("#f0686b", "-", 5.0, 2))

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>pocketfed demo</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #1f2328; }
  h1 { font-size: 1.5rem; margin-bottom: .25rem; } .about { color: #59636e; margin-top: 0; }
  svg { width: 100%; height: auto; }
  .cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1rem; margin: 1.5rem 0; }
  .cards div { border: 1px solid #d0d7de; border-radius: .5rem; padding: .6rem .9rem; color: #59636e; }
  .cards b { display: block; font-size: 1.6rem; color: #1f2328; }
  table { border-collapse: collapse; width: 100%; }
  th, td { padding: .4rem .6rem; border-bottom: 1px solid #d0d7de; text-align: right; white-space: nowrap; }
  th:first-child, td:first-child { text-align: left; white-space: normal; }
  @media (max-width: 45rem) {
    tr, td { display: block; } tr:first-child { display: none; } tr { margin-bottom: 1rem; }
    td, td:first-child { display: flex; justify-content: space-between; border: 0; padding: .1rem 0; }
    td:first-child { font-weight: 600; border-bottom: 1px solid #d0d7de; }
    td + td::before { content: attr(data-label); }
  }
</style>
<h1>From a simulation to a fleet: the same training</h1>
<p class="about">$model on the digits that scikit-learn ships, seed $seed</p>
<div class="cards">
<div><b>$accuracy</b>of the test digits right on the fleet, $expected in its simulation</div>
<div><b>$parity</b>largest relative difference of Keras and the device's interpreter in $steps training steps</div>
<div><b>$share</b>of the bytes of float32 for the updates, encoded with $codec</div>
</div>
<p>The broad curve is a server and five device processes; the dashed curve is what the simulation expected of
them, with updates that are encoded as theirs are, and without a network.</p>
$picture
<table>
<tr><th></th><th>rounds</th><th>test accuracy</th><th>bytes up</th><th>bytes down</th><th>seconds</th></tr>
$rows
</table>
<p>Bytes are those of all devices together. Down, a simulation counts the weights alone; the fleet fetched the bundle
too. Seconds are those of the rounds; for the fleet, its start and end as well.</p>
<p>After $rounds rounds the fleet's weights differ from its simulation's by $difference of the largest weight:
both round with the same random numbers, but where the last bit of a float32 differs, $codec may round to the level
beside, and so it goes on from round to round. With the codec f32 what is left is the order of float32 sums.</p>
</html>
""")
_LABELS = ("rounds", "test accuracy", "bytes up", "bytes down", "seconds")


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

    def cells(self) -> tuple[str, ...]:
        """Rounds, last accuracy, bytes up, bytes down and seconds, as tables show them."""
        return (
            str(self.rounds),
            f"{self.accuracies[-1]:.2%}",
            f"{self.upload_bytes:,}",
            f"{self.download_bytes:,}",
            f"{self.seconds:.1f}",
        )


def write_report(out: Path, curves: Sequence[Curve], summary: dict[str, Any]) -> None:
    """Write ``report.html`` and ``accuracy.png`` into `out`.

    Args:
        out: an existing folder.
        curves: the simulation, the simulation of the fleet, and the fleet.
        summary: what ``summary.json`` holds.
    """
    from tff_sim.experiments.figure import Line, accuracy_figure

    lines = [Line(curve.name, curve.accuracies, *style) for curve, style in zip(curves, _STYLES, strict=True)]
    figure = accuracy_figure(lines)
    figure.savefig(out / "accuracy.png", dpi=120)
    svg = io.StringIO()
    figure.savefig(svg, format="svg")
    page = _PAGE.substitute(
        picture=svg.getvalue()[svg.getvalue().index("<svg") :],
        rows="\n".join(map(_row, curves)),
        model=summary["model"],
        seed=summary["seed"],
        codec=summary["codec"],
        accuracy=f"{summary['fleet_accuracy']:.1%}",
        expected=f"{summary['fleet_simulated_accuracy']:.1%}",
        steps=summary["parity"]["steps"],
        parity=f"{summary['parity']['max_rel']:.1e}",
        rounds=summary["rounds"],
        difference=f"{summary['fleet_difference']:.1%}",
        share=f"{summary['upload_bytes'] / summary['upload_bytes_float32']:.1%}",
    )
    (out / "report.html").write_text(page, encoding="utf-8")


def _row(curve: Curve) -> str:
    cells = zip(_LABELS, curve.cells(), strict=True)
    named = "".join(f'<td data-label="{label}">{cell}</td>' for label, cell in cells)
    return f"<tr><td>{html.escape(curve.name)}</td>{named}</tr>"
