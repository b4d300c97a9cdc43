"""`pocketfed sweep`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.experiment_options import SectionedCommand, experiment_of, experiment_options, export_for_engine, own_model
from cli.options import JSON, print_json
from cli.worker_options import chosen_workers, worker_options

if TYPE_CHECKING:
    from models import ModelSpec
    from tff_sim.experiments.experiment import Experiment
    from tff_sim.workers.addresses import Workers


@click.command(cls=SectionedCommand, short_help="Simulate at each learning rate of a grid.")
@experiment_options(without=("--lr",))
@click.option("--lowest", default=0.01, show_default=True, help="Learning rate of the clients.")
@click.option("--highest", default=1.0, show_default=True, help="Likewise.")
@click.option("--per-decade", type=click.Choice(("3", "6")), default="3", show_default=True, help="Rates a decade.")
@click.option("--prune", is_flag=True, help="No more rounds for a rate than the best so far took to the target.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/sweep"), show_default=True, help="Results.")
@worker_options
@JSON
def sweep(
    config: Path | None,
    lowest: float,
    highest: float,
    per_decade: str,
    prune: bool,
    out: Path,
    workers: str | None,
    worker_timeout: float,
    round_timeout: float | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Simulate at each learning rate of a multiplicative grid, and say which is the best.

    That is the one with the fewest rounds to the target, and where none reaches it the one with the highest accuracy.
    Each rate has a folder in --out and goes on there when it is broken off; sweep.json, sweep.csv and sweep.png compare
    them.

    \b
    pocketfed sweep --rounds 50 --target-accuracy 0.9 --lowest 0.01 --highest 1
    """
    from tff_sim.availability import require_tff

    require_tff()
    remote = chosen_workers(workers, worker_timeout, round_timeout)
    from tff_sim.experiments.own_model import with_model
    from tff_sim.experiments.sweep import learning_rates, run_sweep

    rates = learning_rates(lowest, highest, int(per_decade))
    experiment = experiment_of(config, settings)
    own = own_model(experiment)
    if own is not None:
        experiment = with_model(experiment, own)
    content = run_sweep(experiment, rates, out, resuming(remote, own), prune)
    if as_json:
        print_json(content)
    else:
        print_sweep(content, out)
    if content["best"] is None:
        from tff_sim.errors import DivergedError

        raise DivergedError(f"the training diverged at each rate up to --highest {highest:g}: give a lower --lowest")


def resuming(
    workers: Workers | None = None, own: ModelSpec | None = None
) -> Callable[[Experiment, Path], dict[str, Any]]:
    """A function that runs an experiment in a folder, or goes on with it there, and shows its progress."""

    def run(experiment: Experiment, out: Path) -> dict[str, Any]:
        from cli.progress import round_progress
        from tff_sim.experiments.runner import run_experiment

        with round_progress(out.name, experiment.rounds) as progress:
            return run_experiment(
                experiment,
                out,
                lambda row: progress(row.round, f"loss {row.train_loss:.4f}  accuracy {row.test_accuracy:.2%}"),
                resume=True,
                workers=workers,
                make_bundle=export_for_engine,
                own=own,
            )

    return run


def print_sweep(content: dict[str, Any], out: Path) -> None:
    """A table of the rates."""
    from rich.console import Console
    from rich.table import Table

    table = Table("learning rate")
    for heading in ("rounds", "rounds to target", "best accuracy", ""):
        table.add_column(heading, justify="right")
    best = content["best"]
    for run in content["runs"]:
        is_best = best is not None and run["learning_rate"] == best["learning_rate"]
        to_target = run["rounds_to_target"]
        cells = (
            ("diverged", "", "")
            if run["diverged"]
            else (
                str(run["rounds"]),
                "not reached" if to_target is None else f"{to_target:.1f}",
                f"{run['best_accuracy']:.2%}",
            )
        )
        table.add_row(f"{run['learning_rate']:g}", *cells, "best" if is_best else "")
    console = Console()
    console.print(table)
    console.print(f"results in {out}", highlight=False)
