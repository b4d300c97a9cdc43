"""What the people who run a fleet do from the command line: look, pause, resume, roll back, release, enrol, revoke."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from aggregation_server.web.paths import CODES, DEVICES, PAUSE, RELEASE, RESUME, REVOKE, ROLLBACK, ROUNDS
from cli.fleet_server import FleetServer, server_options
from cli.options import JSON, print_json
from device_runtime.messages import STATUS

_PAGE = 1000
# What a server takes at most; a test asks one.
_MOST_CODES = 10_000
_LONGEST_HOURS = 24 * 366


@click.command(short_help="Show a server's rounds.")
@server_options
@click.option("--last", default=20, show_default=True, type=click.IntRange(1, 1000), help="Rounds to show.")
@JSON
def rounds(server: str, keys: Path, ca_file: Path | None, insecure: bool, last: int, as_json: bool) -> None:
    """Show how the open round stands, and the last ones that are over."""
    fleet = FleetServer.of(server, keys, ca_file, insecure)
    status = fleet.get(STATUS)
    records = fleet.get(f"{ROUNDS}?limit={last}")
    if as_json:
        print_json({**status, "history": records})
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # It fits into 80 columns: only a long outcome, and the name of a metric, go over several lines.
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for name in ("version", "task", "outcome", "ended", "seconds", "reports", "loss"):
        table.add_column(name, no_wrap=name != "outcome", max_width=24)
    metric = status["task"]["metric"]
    table.add_column(Text(metric.replace("_", " ")), min_width=len("1.234e+05"))
    for record in records:
        table.add_row(*_cells(record, status["released"], metric))
    console = Console()
    console.print(table)
    if status["round_task"] is None:
        console.print(f"{status['phase']}; the latest version is {status['committed_rounds']}")
    else:
        console.print(
            f"round {status['round']} ({status['round_task']}): {status['phase']}, {status['cohort']} of"
            f" {status['task']['cohort_size']} devices, {status['reports']} of {status['task']['goal_count']} reports"
        )


@click.command(short_help="Show a server's devices.")
@server_options
@JSON
def devices(server: str, keys: Path, ca_file: Path | None, insecure: bool, as_json: bool) -> None:
    """Show which devices are enrolled, and when they were seen last."""
    fleet = FleetServer.of(server, keys, ca_file, insecure)
    found: list[dict[str, Any]] = []
    while page := fleet.get(f"{DEVICES}?limit={_PAGE}&after={found[-1]['name'] if found else ''}"):
        found += page
    if as_json:
        print_json({"devices": found})
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("device", "state", "runtime", "enrolled", "seen", "reports")
    for device in found:
        seen = "" if device["seen"] is None else _clock(device["seen"])
        runtime = Text(device["runtime"])  # the device's own words: no markup
        table.add_row(
            device["name"], device["state"], runtime, _clock(device["enrolled"]), seen, str(device["reports"])
        )
    Console().print(table)


@click.command(short_help="Begin no further rounds.")
@server_options
def pause(server: str, keys: Path, ca_file: Path | None, insecure: bool) -> None:
    """Begin no further rounds. A round that waits for devices is abandoned; one that waits for reports goes on."""
    FleetServer.of(server, keys, ca_file, insecure, operator=True).post(PAUSE, {})
    click.echo("paused: 'pocketfed resume' goes on")


@click.command(short_help="Go on with rounds.")
@server_options
def resume(server: str, keys: Path, ca_file: Path | None, insecure: bool) -> None:
    """Go on with rounds after 'pocketfed pause'."""
    FleetServer.of(server, keys, ca_file, insecure, operator=True).post(RESUME, {})
    click.echo("rounds go on")


@click.command(short_help="Go back to an earlier version.")
@server_options
@click.argument("version", type=click.IntRange(min=0))
def rollback(server: str, keys: Path, ca_file: Path | None, insecure: bool, version: int) -> None:
    """Make the weights of VERSION the latest ones; the open round is abandoned.

    The history stays: they become a version of their own, with the next number. 0 is the bundle's.
    """
    fleet = FleetServer.of(server, keys, ca_file, insecure, operator=True)
    record = fleet.post(ROLLBACK, {"version": version})
    click.echo(f"version {record['number']} has the weights of version {version}: {record['weights']}")


@click.command(short_help="Say which version is for users.")
@server_options
@click.option(
    "--out", type=click.Path(path_type=Path), help="Also write its weights, for 'pocketfed export --weights'."
)
@click.argument("version", type=click.IntRange(min=0))
def release(server: str, keys: Path, ca_file: Path | None, insecure: bool, out: Path | None, version: int) -> None:
    """Mark VERSION as the one for users. Its weights are kept, however many versions follow."""
    fleet = FleetServer.of(server, keys, ca_file, insecure, operator=True)
    weights = fleet.post(RELEASE, {"version": version})["weights"]
    click.echo(f"version {version} is released: {weights}")
    if out is not None:
        from device_runtime.errors import InputError
        from device_runtime.messages import weights_path

        content = fleet.bytes_of(weights_path(weights))
        try:
            out.write_bytes(content)
        except OSError as error:
            raise InputError(f"{out}: can't write the weights: {error.strerror}") from None
        click.echo(f"wrote {out}")


@click.command(short_help="Make codes with which devices enrol.")
@server_options
@click.option(
    "--count", default=1, show_default=True, type=click.IntRange(1, _MOST_CODES), help="Codes; a device uses up one."
)
@click.option(
    "--hours",
    default=24.0,
    show_default=True,
    type=click.FloatRange(0, _LONGEST_HOURS, min_open=True),
    help="How long they can be used.",
)
@click.option(
    "--client", metavar="NAME", help="Only for this name, also where it is taken: a device that lost its secret."
)
@JSON
def enrol(
    server: str,
    keys: Path,
    ca_file: Path | None,
    insecure: bool,
    count: int,
    hours: float,
    client: str | None,
    as_json: bool,
) -> None:
    """Make one-use codes, and print them one a line. A device enrols with one of them:

    \b
    pocketfed-device enrol --server URL --client NAME --code CODE
    """
    fleet = FleetServer.of(server, keys, ca_file, insecure, operator=True)
    codes = fleet.post(CODES, {"count": count, "hours": hours, "client": client})["codes"]
    if as_json:
        print_json({"codes": codes})
    else:
        click.echo("\n".join(codes))


@click.command(short_help="Let a device take part no more.")
@server_options
@click.argument("client")
def revoke(server: str, keys: Path, ca_file: Path | None, insecure: bool, client: str) -> None:
    """Know the device CLIENT no more, from its next request on.

    'pocketfed enrol --client CLIENT' makes a code with which it may come back.
    """
    FleetServer.of(server, keys, ca_file, insecure, operator=True).post(REVOKE, {"client": client})
    click.echo(f"{client} is revoked")


def _cells(record: dict[str, Any], released: int | None, metric: str) -> list[str]:
    made = record["outcome"] == "committed" and record["task"] != "evaluation"
    words = (record["outcome"], record["reason"], "(released)" if made and record["number"] == released else "")
    figures = [
        "" if record[name] is None else form.format(record[name])
        for name, form in (("loss", "{:.4f}"), ("accuracy", _form(metric, record["accuracy"])))
    ]
    ended = time.strftime("%m-%d %H:%M", time.localtime(record["ended"]))
    reports = f"{record['clients']} of {record['cohort']}"
    seconds = f"{record['seconds']:.1f}"
    return [str(record["number"]), record["task"], " ".join(filter(None, words)), ended, seconds, reports, *figures]


def _form(metric: str, mean: float | None) -> str:
    """How the mean of a metric is written: accuracy as a share, an error like the page does."""
    return "{:.2%}" if metric == "accuracy" else "{:.4f}" if mean is None or mean < 100 else "{:.4g}"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
