"""`pocketfed serve`."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from cli.options import BUNDLE, client_work


@click.command(short_help="Run the aggregation server.")
@BUNDLE
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, help="Port to listen on; 0 takes a free one.")
@click.option("--db", metavar="URL", help="Database; without it, SQLite in the file pocketfed-MODEL.db.")
@click.option("--population", help="Name under which devices check in; without it, the model's name.")
@click.option("--goal", default=5, show_default=True, help="Reports that complete a round.")
@click.option("--over-selection", default=1.3, show_default=True, help="Devices accepted for each report of the goal.")
@click.option("--minimum", default=1, show_default=True, help="Reports that suffice at the deadline.")
@click.option("--selection-timeout", default=60.0, show_default=True, help="Seconds until a round starts with fewer.")
@click.option("--reporting-timeout", default=180.0, show_default=True, help="Seconds until a round's deadline.")
@click.option("--retry-seconds", default=5.0, show_default=True, help="When a rejected device may check in again.")
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds until the task is complete; without it, no end.")
@click.option("--codec", default="q8", show_default=True, help="How updates are encoded: f32, f16, q8, q4, q2 or q1.")
@click.option(
    "--downlink",
    default="f32",
    show_default=True,
    help="How weights travel: f32 or f16 whole; q8, q4, q2 or q1 as the difference to the version before.",
)
@client_work(epochs=1)
def serve(
    bundle: Path,
    host: str,
    port: int,
    db: str | None,
    population: str | None,
    goal: int,
    over_selection: float,
    minimum: int,
    selection_timeout: float,
    reporting_timeout: float,
    retry_seconds: float,
    rounds: int | None,
    codec: str,
    downlink: str,
    epochs: int,
    batch_size: int | None,
    learning_rate: float,
    proximal: float,
    seed: int,
) -> None:
    """Run the aggregation server for BUNDLE: accept devices, aggregate their reports, commit new weights.

    The weights and the round survive a restart. Each round is told on standard error when it ends, and GET
    /v1/status shows all of them. Ctrl-C ends it.

    \b
    pocketfed export digits_mlp --out bundles
    pocketfed serve bundles --goal 2 --over-selection 1 --rounds 10
    pocketfed-device run --server http://127.0.0.1:8080 --population digits_mlp --data examples.npz
    """
    from device_runtime.bundle import open_bundle
    from device_runtime.codec import require_codec
    from device_runtime.work import ClientWork

    _log_rounds()
    require_codec(codec)
    opened = open_bundle(bundle)

    from aggregation_server.rounds import RoundConfig
    from aggregation_server.server import serve as run_server
    from aggregation_server.task import Task

    task = Task(
        round=RoundConfig(goal, over_selection, minimum, selection_timeout, reporting_timeout),
        work=ClientWork(epochs, batch_size, learning_rate, proximal, seed, codec),
        population=population,
        seed=seed,
        rounds=rounds,
        retry_seconds=retry_seconds,
        downlink=downlink,
    )
    store = db or f"sqlite:///pocketfed-{opened.manifest.name}.db"
    run_server(opened, task, store, host, port, lambda url: click.echo(f"listening on {url}"))


def _log_rounds() -> None:
    """Committed and abandoned rounds, and what went wrong, on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger = logging.getLogger("aggregation_server")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
