"""`pocketfed simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.options import JSON, MODEL_HELP, client_optimizer, client_work, optimizer_options, print_json
from cli.worker_options import chosen_workers, worker_options


@click.command(short_help="Simulate Federated Averaging.")
@click.option("--model", default="digits_mlp", show_default=True, help=MODEL_HELP)
@click.option("--dataset", default="digits", show_default=True, help="digits (embedded) or mnist.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder with the data set's files (IDX for mnist).")
@click.option("--partition", default="iid", show_default=True, help="iid, or shards: two labels a client.")
@click.option("--clients", default=100, show_default=True, help="K, how many clients the data is dealt to.")
@click.option("--fraction", default=0.1, show_default=True, help="C, the share of clients in a round; 0 is one.")
@client_work(epochs=1)
@optimizer_options
@click.option("--rounds", default=100, show_default=True, help="At most so many rounds.")
@click.option("--target-accuracy", type=float, help="Stop when the test accuracy reaches it, such as 0.95.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/latest"), show_default=True, help="Results.")
@worker_options
@JSON
def simulate(
    model: str,
    dataset: str,
    data_dir: Path | None,
    partition: str,
    clients: int,
    fraction: float,
    epochs: int,
    batch_size: int | None,
    learning_rate: float,
    proximal: float,
    seed: int,
    optimizer: str,
    momentum: float,
    clip_norm: float | None,
    rounds: int,
    target_accuracy: float | None,
    out: Path,
    workers: str | None,
    worker_timeout: float,
    round_timeout: float | None,
    as_json: bool,
) -> None:
    """Simulate Federated Averaging with TensorFlow Federated, on this machine or over --workers on several.

    Writes metrics.csv, summary.json, accuracy.png and weights.safetensors into the folder --out.

    \b
    pocketfed simulate --rounds 50 --clients 20 --fraction 0.25
    pocketfed simulate --model mnist_2nn --dataset mnist --data-dir MNIST --target-accuracy 0.97
    """
    from cli.progress import round_progress
    from device_runtime.work import ClientWork
    from tff_sim.availability import require_tff

    require_tff()
    remote = chosen_workers(workers, worker_timeout, round_timeout)
    from tff_sim.experiment import Experiment, run_experiment

    work = ClientWork(epochs, batch_size, learning_rate, proximal, seed)
    chosen = client_optimizer(optimizer, momentum, clip_norm)
    experiment = Experiment(
        model, dataset, data_dir, partition, clients, fraction, work, rounds, target_accuracy, chosen
    )
    with round_progress("simulating", rounds) as progress:
        summary = run_experiment(
            experiment,
            out,
            lambda row: progress(
                row.round, f"loss {row.train_loss:.4f}  accuracy {row.test_accuracy:.2%}  {row.seconds:.2f} s"
            ),
            remote,
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
        click.echo(f"{target:.1%} reached in round {summary['rounds']} (interpolated: {reached:.1f})")
    click.echo(
        f"test accuracy {summary['final_accuracy']:.2%} (best {summary['best_accuracy']:.2%})"
        f" after {summary['rounds']} rounds, {summary['seconds_per_round_median']:.2f} s a round;"
        f" results in {out}"
    )
