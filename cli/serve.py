"""`pocketfed serve`."""

from __future__ import annotations

from pathlib import Path

import click

from cli.logs import log_to_stderr
from cli.options import BUNDLE, client_work


@click.command(short_help="Run the aggregation server.")
@BUNDLE
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, help="Port to listen on; 0 takes a free one.")
@click.option("--db", metavar="URL", help="Database; without it, SQLite in the file pocketfed-MODEL.db.")
@click.option(
    "--spool", type=click.Path(path_type=Path), help="For reports of the open round; [pocketfed-MODEL.spool]."
)
@click.option("--keys", type=click.Path(path_type=Path), default=".", help="Folder with operator.key and viewer.key.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate chain for TLS, a PEM file.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its private key, a PEM file.")
@click.option("--insecure", is_flag=True, help="Speak plain HTTP although others can hear it: behind a proxy with TLS.")
@click.option("--open-enrolment", is_flag=True, help="Devices need no code; for trials on this machine.")
@click.option("--population", help="Name under which devices check in; without it, the model's name.")
@click.option("--goal", default=5, show_default=True, help="Reports that complete a round.")
@click.option("--over-selection", default=1.3, show_default=True, help="Devices accepted for each report of the goal.")
@click.option("--minimum", default=1, show_default=True, help="Reports that suffice at the deadline.")
@click.option("--selection-timeout", default=60.0, show_default=True, help="Seconds until a round starts with fewer.")
@click.option("--reporting-timeout", default=180.0, show_default=True, help="Seconds until a round's deadline.")
@click.option("--selection-seconds", default=0.0, help="How long a selection stays open at least.  [0]")
@click.option("--evaluate-every", type=click.IntRange(min=1), help="Versions between two evaluations by the fleet.")
@click.option("--participation-seconds", default=0.0, help="Between two rounds of the same device, at least.  [0]")
@click.option("--keep-versions", default=50, show_default=True, help="Versions whose weights can be had.")
@click.option("--retry-seconds", default=5.0, show_default=True, help="For which a rejected device waits at least.")
@click.option("--checkin-rate", default=500.0, show_default=True, help="Check-ins a second that are wanted at most.")
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds until the task is complete; without it, no end.")
@click.option("--codec", default="q8", show_default=True, help="How updates are encoded: f32, f16, q8, q4, q2 or q1.")
@click.option(
    "--downlink",
    default="f32",
    show_default=True,
    help="How weights travel: f32 or f16 whole; q8, q4, q2 or q1 as the difference to the version before.",
)
@click.option("--log-json", is_flag=True, help="Log one JSON object a line on standard error.")
@client_work(epochs=1)
def serve(
    bundle: Path,
    host: str,
    port: int,
    db: str | None,
    spool: Path | None,
    keys: Path,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure: bool,
    open_enrolment: bool,
    population: str | None,
    goal: int,
    over_selection: float,
    minimum: int,
    selection_timeout: float,
    reporting_timeout: float,
    selection_seconds: float,
    evaluate_every: int | None,
    participation_seconds: float,
    keep_versions: int,
    retry_seconds: float,
    checkin_rate: float,
    rounds: int | None,
    codec: str,
    downlink: str,
    log_json: bool,
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

    log_to_stderr(log_json)
    require_codec(codec)
    opened = open_bundle(bundle)

    from aggregation_server.rounds import RoundConfig
    from aggregation_server.server import Listening
    from aggregation_server.server import serve as run_server
    from aggregation_server.task import Task
    from aggregation_server.tokens import read_key
    from aggregation_server.web.callers import Keys

    task = Task(
        round=RoundConfig(goal, over_selection, minimum, selection_timeout, reporting_timeout, selection_seconds),
        work=ClientWork(epochs, batch_size, learning_rate, proximal, seed, codec),
        population=population,
        seed=seed,
        rounds=rounds,
        retry_seconds=retry_seconds,
        checkin_rate=checkin_rate,
        downlink=downlink,
        evaluate_every=evaluate_every,
        participation_seconds=participation_seconds,
        keep_versions=keep_versions,
    )
    listening = Listening(host, port, tls_cert, tls_key, insecure)
    people = Keys(read_key(keys / "operator.key", "operator"), read_key(keys / "viewer.key", "viewer"))
    store = db or f"sqlite:///pocketfed-{opened.manifest.name}.db"
    run_server(
        opened,
        task,
        store,
        spool or Path(f"pocketfed-{opened.manifest.name}.spool"),
        people,
        listening,
        lambda url: click.echo(f"listening on {url}"),
        open_enrolment,
    )
