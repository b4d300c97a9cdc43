"""The paper's experiments (McMahan et al. 2017), each a row with what was published, to be run and set beside it."""

from __future__ import annotations

from tff_sim.experiments.reproduce.report import Entry, write_figure, write_report
from tff_sim.experiments.reproduce.rows import FIGURES, TABLES, Row, chosen_rows

__all__ = ["FIGURES", "TABLES", "Entry", "Row", "chosen_rows", "write_figure", "write_report"]
