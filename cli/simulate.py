"""`pocketfed simulate`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from cli.experiment_options import SectionedCommand, experiment_of, experiment_options, export_for_engine, own_model
from cli.options import JSON, print_json
from cli.worker_options import chosen_workers, worker_options


@click.command(cls=SectionedCommand, short_help="Simulate Federated Averaging.")
@experiment_options()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/latest"), show_default=True, help="Results.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, to the bit; begin where there is none.")
@click.option("--overwrite", is_flag=True, help="Replace the run in --out, also one that was broken off.")
@worker_options
@JSON
def simulate(
    config: Path | None,
    out: Path,
    resume: bool,
    overwrite: bool,
    workers: str | None,
    worker_timeout: float,
    round_timeout: float | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Simulate Federated Averaging with TensorFlow Federated, on this machine or over --workers on several.

    Writes metrics.csv, summary.json, accuracy.png, rounds.png, TensorBoard's events and weights.safetensors into the
    folder --out, and experiment.toml, which repeats the run.

    \b
    pocketfed simulate --rounds 50 --clients 20 --fraction 0.25
    pocketfed simulate --model mnist_2nn --dataset mnist --data-dir MNIST --target-accuracy 0.97
    pocketfed simulate --keras my.keras --loss sparse_categorical_crossentropy --dataset npz --data-dir CLIENTS
    pocketfed simulate --config runs/latest/experiment.toml --lr 0.2 --out runs/faster
    """
    from cli.progress import round_progress
    from tff_sim.availability import require_tff

    if resume and overwrite:
        raise click.UsageError("--resume goes on with what is there, --overwrite replaces it: give one of them")
    require_tff()
    remote = chosen_workers(workers, worker_timeout, round_timeout)
    from tff_sim.experiments.runner import run_experiment

    experiment = experiment_of(config, settings)
    own = own_model(experiment)
    with round_progress("simulating", experiment.rounds) as progress:
        summary = run_experiment(
            experiment,
            out,
            lambda row: progress(
                row.round, f"loss {row.train_loss:.4f}  accuracy {row.test_accuracy:.2%}  {row.seconds:.2f} s"
            ),
            resume=resume,
            overwrite=overwrite,
            workers=remote,
            make_bundle=export_for_engine,
            own=own,
        )
    if as_json:
        print_json(summary)
    else:
        _print(summary, out)


def _print(summary: dict[str, Any], out: Path) -> None:
    target, reached = summary["target_accuracy"], summary["rounds_to_target"]
    if target is not None and reached is None:
        click.echo(f"{target:.1%} was not reached in {summary['rounds']} rounds")
    elif target is not None:
        click.echo(f"{target:.1%} reached in round {math.ceil(reached)} (interpolated: {reached:.1f})")
    click.echo(
        f"test accuracy {summary['final_accuracy']:.2%} (best {summary['best_accuracy']:.2%})"
        f" after {summary['rounds']} rounds, {summary['seconds_per_round_median']:.2f} s a round;"
        f" results in {out}"
    )
