"""`pocketfed serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.logs import log_to_stderr
from cli.options import BUNDLE, client_work
from cli.serve_options import listening_of, quotas_of, serve_options, task_of


@click.command(short_help="Run the aggregation server.")
@BUNDLE
@serve_options
@client_work(epochs=1)
def serve(bundle: Path, **options: Any) -> None:
    """Run the aggregation server for BUNDLE: accept devices, aggregate their reports, commit new weights.

    Whatever it has acknowledged survives a restart. Each round is told on standard error when it ends; 'pocketfed
    rounds' shows them, with the viewer's key, which is made beside the operator's where there is none. Ctrl-C ends it.

    \b
    pocketfed export digits_mlp --out bundles
    pocketfed serve bundles --goal 2 --over-selection 1 --rounds 10
    pocketfed enrol --count 2
    pocketfed-device enrol --server http://127.0.0.1:8080 --client phone-0 --code CODE
    pocketfed-device run --server http://127.0.0.1:8080 --population digits_mlp --client phone-0 --data examples.npz
    """
    from device_runtime.bundle import open_bundle
    from device_runtime.codec import require_codec

    log_to_stderr(options["log_json"])
    require_codec(options["codec"])
    opened = open_bundle(bundle)

    from aggregation_server.access.tokens import read_key
    from aggregation_server.server import serve as run_server
    from aggregation_server.web.callers import Keys

    task, listening = task_of(options), listening_of(options)
    keys: Path = options["keys"]
    people = Keys(read_key(keys / "operator.key", "operator"), read_key(keys / "viewer.key", "viewer"))
    name = f"pocketfed-{opened.manifest.name}"
    run_server(
        opened,
        task,
        options["db"] or f"sqlite:///{name}.db",
        options["spool"] or Path(f"{name}.spool"),
        people,
        listening,
        lambda url: click.echo(f"listening on {url}"),
        options["open_enrolment"],
        quotas_of(options),
    )
