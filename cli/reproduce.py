"""`pocketfed reproduce`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.experiment_options import ENGINES
from cli.options import JSON, SEED, print_json
from cli.sweep import print_sweep, resuming

if TYPE_CHECKING:
    from tff_sim.experiments.reproduce import Entry, Row

_PATH = click.Path(path_type=Path)
# Help loads no NumPy: so the names stand here once more, and a test compares.
TABLES = ("table1", "table2", "table3", "codecs", "figures")


@click.command(short_help="Run the paper's experiments, and compare.")
@click.argument("table", type=click.Choice(TABLES))
@click.option("--row", "rows", multiple=True, metavar="NAME", help="Row to run, '2nn-iid-*' for some; several: again.")
@click.option("--list", "as_list", is_flag=True, help="Only list the rows, and what the paper has for them.")
@click.option("--data-dir", type=_PATH, help="Folder with mnist/, shakespeare/ and cifar10/.")
@click.option("--out", type=_PATH, default=Path("runs/reproduce"), show_default=True, help="Results.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Of data, weights, cohorts and rounding.")
@click.option("--rounds", type=click.IntRange(min=1), help="At most so many; by default 1.5 times the paper's.")
@click.option("--target-accuracy", type=float, help="Stop there, where the paper's target takes too long.")
@click.option("--lr", "learning_rate", type=float, help="Learning rate of the clients, in the place of the row's.")
@click.option("--engine", type=click.Choice(ENGINES), default="tff", show_default=True, help="As simulate's.")
@click.option("--sweep", is_flag=True, help="Search the learning rate on a grid around the row's.")
@click.option("--per-decade", type=click.Choice(("3", "6")), default="3", show_default=True, help="Rates of --sweep.")
@JSON
def reproduce(
    table: str,
    rows: tuple[str, ...],
    as_list: bool,
    data_dir: Path | None,
    out: Path,
    seed: int,
    rounds: int | None,
    target_accuracy: float | None,
    learning_rate: float | None,
    engine: str,
    sweep: bool,
    per_decade: str,
    as_json: bool,
) -> None:
    """Run experiments of McMahan et al. 2017 and write what was measured next to what they published.

    A row is a run of its own in --out, goes on where it is broken off, and is not run again when it is finished.
    TABLE.md, .csv, .json and .png compare all rows of the table that have been run. 'codecs' compares the codecs of
    updates; 'figures' draws curves of several rows of the tables.

    \b
    pocketfed reproduce table1 --list
    pocketfed reproduce table1 --row 2nn-iid-b10-c0.1 --data-dir DATA
    pocketfed reproduce table2 --row 'cnn-iid-*' --sweep --data-dir DATA
    """
    from tff_sim.availability import require_tff

    require_tff()
    if sweep and learning_rate is not None:
        raise click.UsageError("--sweep searches the learning rate, --lr gives it: leave one of them out")
    from tff_sim.errors import DivergedError
    from tff_sim.experiments import reproduce as paper

    tables = _chosen(table, rows)
    if as_list:
        _list(tables, as_json)
        return
    diverged = []
    for name, chosen in tables.items():
        for row in chosen:
            changed = _changed(row, data_dir, seed, rounds, target_accuracy, learning_rate, engine)
            try:
                run_row(changed, out / name / row.name, sweep, int(per_decade))
            except DivergedError as error:  # the other rows are not the worse for it
                click.echo(f"{row.name}: {error}", err=True)
                diverged.append(row.name)
    reports = {name: paper.write_report(name, out) for name in tables}
    figures = [paper.write_figure(name, *paper.FIGURES[name], out) for name in _figures(table, rows)]
    if as_json:
        from dataclasses import asdict

        print_json({name: [asdict(entry) for entry in entries] for name, entries in reports.items()})
    else:
        for entries in reports.values():
            _print(entries)
        for path in [*(out / f"{name}.md" for name in reports), *filter(None, figures)]:
            click.echo(str(path))
    if diverged:
        lower = "give a lower --lr" if sweep else "give a lower --lr, or --sweep"
        raise DivergedError(f"the training diverged in {', '.join(diverged)}: {lower}")


def run_row(row: Row, folder: Path, sweep: bool, per_decade: int) -> None:
    """Run it there, or go on with it; with `sweep` at the rates within 5 times of its own, up and down.

    Raises:
        DivergedError: the training did, with `sweep` at each of the rates.
    """
    click.echo(f"{row.name}: {row.about}", err=True)
    if not sweep:
        resuming()(row.experiment, folder)
        return
    from tff_sim.errors import DivergedError
    from tff_sim.experiments.sweep import learning_rates, run_sweep

    rate = row.experiment.work.learning_rate
    rates = sorted(learning_rates(rate / 5, rate * 5, per_decade), key=lambda r: max(r / rate, rate / r))
    content = run_sweep(row.experiment, rates, folder, resuming(), prune=True)
    print_sweep(content, folder)
    if content["best"] is None:
        raise DivergedError(f"the training diverged at each rate from {min(rates):g} to {max(rates):g}")


def _chosen(table: str, rows: tuple[str, ...]) -> dict[str, list[Row]]:
    """Table → its rows to run; for figures those whose curves they show."""
    from tff_sim.experiments import reproduce as paper

    if table != "figures":
        return {table: paper.chosen_rows(table, rows)}
    chosen: dict[str, list[Row]] = {}
    for name in _figures(table, rows):
        of, names = paper.FIGURES[name]
        chosen.setdefault(of, []).extend(paper.chosen_rows(of, names))
    return chosen


def _figures(table: str, rows: tuple[str, ...]) -> list[str]:
    from device_runtime.errors import InputError
    from tff_sim.experiments import reproduce as paper

    if table != "figures":
        return []
    for name in rows:
        if name not in paper.FIGURES:
            raise InputError(f"figures has no row {name!r}; it has {', '.join(paper.FIGURES)}")
    return list(rows or paper.FIGURES)


def _changed(
    row: Row,
    data_dir: Path | None,
    seed: int,
    rounds: int | None,
    target: float | None,
    rate: float | None,
    engine: str,
) -> Row:
    """The row with what the command line says; `InputError` where its data are not there."""
    from device_runtime.errors import InputError

    if data_dir is None:
        raise InputError(f"--data-dir is missing; it names the folder that holds {row.data}/")
    if not (data_dir / row.data).is_dir():
        raise InputError(f"{data_dir / row.data}: no such folder; --data-dir should hold {row.data}/")
    experiment = row.experiment
    work = replace(experiment.work, seed=seed, learning_rate=experiment.work.learning_rate if rate is None else rate)
    data = replace(experiment.data, data_dir=data_dir / row.data)
    changed = replace(
        experiment,
        work=work,
        data=data,
        engine=engine,
        rounds=experiment.rounds if rounds is None else rounds,
        target_accuracy=experiment.target_accuracy if target is None else target,
    )
    return replace(row, experiment=changed)


def _list(tables: dict[str, list[Row]], as_json: bool) -> None:
    if as_json:
        print_json({name: [_about(row) for row in rows] for name, rows in tables.items()})
        return
    listed = [row for rows in tables.values() for row in rows]
    names, about = (max(len(getattr(row, field)) for row in listed) for field in ("name", "about"))
    for row in listed:
        published = ", ".join(
            f"{target:.0%} in {'—' if rounds is None else f'{rounds:g}'}" for target, rounds in row.published.items()
        )
        click.echo(f"{row.name:{names}}  {row.about:{about}}  {published}")


def _about(row: Row) -> dict[str, Any]:
    return {
        "row": row.name,
        "about": row.about,
        "published": {f"{target:g}": rounds for target, rounds in row.published.items()},
        "learning_rate": row.experiment.work.learning_rate,
        "rounds": row.experiment.rounds,
    }


def _print(entries: list[Entry]) -> None:
    for entry in entries:
        measured = f"not in {entry.rounds}" if entry.measured is None else f"in {entry.measured:.1f}"
        published = "" if entry.published is None else f" (paper: {entry.published:g})"
        times = (
            "" if entry.measured_speedup is None else f", {entry.measured_speedup:.2f} times as fast as the baseline"
        )
        click.echo(
            f"{entry.row}: {entry.target * 100:g}% {measured} rounds{published}{times}; best {entry.best_accuracy:.2%}"
        )
