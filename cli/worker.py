"""`pocketfed worker`."""

from __future__ import annotations

import click


@click.command(short_help="Compute for 'simulate --workers' on this machine.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--bind",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address of this machine to listen on; 0.0.0.0 for all of them.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Of each client's training. A worker trains its clients side by side, one a core; more threads are for"
    " machines with more cores than clients in their share of a round.",
)
def worker(port: int, bind: str, threads: int) -> None:
    """Compute for a simulation that runs elsewhere, until Ctrl-C or SIGTERM.

    Whoever can connect can run any TensorFlow program here as this user: bind it to a private network's address only.

    \b
    pocketfed worker --port 8000 --bind 10.0.0.2
    pocketfed simulate --workers 10.0.0.2:8000,10.0.0.3:8000
    """
    from tff_sim.availability import require_tff

    require_tff()
    from tff_sim.workers.service import run_worker

    run_worker(
        bind,
        port,
        threads,
        ready=lambda address: click.echo(f"listening on {address}"),
        notice=lambda line: click.echo(line, err=True),
    )
