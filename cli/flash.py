"""`pocketfed flash`: bring a bundle to devices."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import BUNDLE, JSON, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from export.flashing.fleet import Outcome
    from export.flashing.plan import Plan

_FILE = click.Path(path_type=Path)


@click.command(short_help="Bring a bundle to devices.")
@BUNDLE
@click.argument("targets", metavar="[TARGET]...", nargs=-1)
@click.option("--targets", "file", type=_FILE, help="Further targets, one a line; # begins a comment.")
@click.option("--jobs", default=8, show_default=True, type=click.IntRange(1, 256), help="Targets at a time.")
@click.option(
    "--trusted-key",
    "keys",
    type=_FILE,
    multiple=True,
    help="File of a public key: only a bundle that was signed with it, or another one named so, is flashed, and boards"
    " check that too.",
)
@click.option(
    "--device-command",
    default="pocketfed-device",
    show_default=True,
    help="The device's program on boards, or its path.",
)
@click.option("--ssh-config", type=_FILE, help="Configuration of OpenSSH's client; the user's own by default.")
@click.option("--dry-run", is_flag=True, help="Print the commands that would run; nothing is touched.")
@JSON
@click.pass_context
def flash(
    ctx: click.Context,
    bundle: Path,
    targets: tuple[str, ...],
    file: Path | None,
    jobs: int,
    keys: tuple[Path, ...],
    device_command: str,
    ssh_config: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Verify BUNDLE, bring it to every TARGET, and verify there what has arrived.

    A TARGET is dir:PATH, a folder such as a mounted card; ssh://USER@HOST:PORT/PATH, a board, where the bundle is
    installed in the folder PATH and self-tested; or adb:SERIAL/PACKAGE, a phone and an app's files. What fails with one
    target stops none of the others; the exit code is that of the worst failure.
    """
    from device_runtime.bundle import open_bundle
    from export.flashing.fleet import flash_all
    from export.flashing.plan import Load
    from export.flashing.targets import read_targets

    trusted = None
    if keys:
        from device_runtime.keys import read_public_key
        from device_runtime.signature import TrustedKeys

        trusted = TrustedKeys(map(read_public_key, keys))
    opened = open_bundle(bundle, trusted)
    wanted = read_targets(targets, file, device_command, ssh_config)
    load = Load(opened, keys, secrets.token_hex(6))
    plans = [target.plan(load) for target in wanted]
    if dry_run:
        _print_plans(plans, as_json)
        return

    from cli.progress import round_progress

    with round_progress("flashing", sum(len(plan.steps) for plan in plans)) as progress:
        outcomes = flash_all(plans, jobs, progress)
    worst = max(outcome.exit_code for outcome in outcomes)
    if as_json:
        print_json(
            {
                "ok": worst == 0,
                "bundle": str(opened.path),
                "identity": opened.identity,
                "targets": [
                    {
                        "target": outcome.target,
                        "ok": outcome.exit_code == 0,
                        "exit_code": outcome.exit_code,
                        "detail": outcome.detail,
                        "seconds": round(outcome.seconds, 3),
                    }
                    for outcome in outcomes
                ],
            }
        )
    else:
        _print_outcomes(outcomes)
    ctx.exit(worst)


def _print_plans(plans: Sequence[Plan], as_json: bool) -> None:
    if as_json:
        print_json(
            {"targets": [{"target": plan.target, "steps": [step.to_json() for step in plan.all]} for plan in plans]}
        )
        return
    for plan in plans:
        click.echo(f"# {plan.target}")
        for step in plan.all:
            for line in step.shown():
                click.echo(line)


def _print_outcomes(outcomes: Sequence[Outcome]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for title in ("target", "", "seconds", "detail"):
        table.add_column(title, overflow="fold")
    for outcome in outcomes:
        verdict = "done" if outcome.exit_code == 0 else f"FAILED ({outcome.exit_code})"
        table.add_row(Text(outcome.target), verdict, f"{outcome.seconds:.1f}", Text(outcome.detail))
    Console().print(table)
    failed = sum(outcome.exit_code != 0 for outcome in outcomes)
    click.echo(f"{len(outcomes) - failed} of {len(outcomes)} flashed")
