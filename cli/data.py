"""`pocketfed data`: look at data sets and at how clients have them; make partitions, and files for devices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.data_options import data_options
from cli.options import JSON, SEED, print_json
from device_runtime.errors import InputError

if TYPE_CHECKING:
    from tff_sim.experiments.data_settings import Data
    from tff_sim.label_counts import Summary

_SEED = click.option("--seed", default=0, show_default=True, type=SEED, help="The same seed deals the same hands.")
_WIDEST = 40  # labels of a histogram in text


@click.group(short_help="Data sets, partitions, files for devices.")
def data() -> None:
    """Look at data sets and at how clients have them; make partitions, and files for devices.

    Nothing is downloaded: --data-dir names a folder with the files of a public format.
    """


@data.command(name="info", short_help="Clients, examples, labels, imbalance.")
@data_options
@_SEED
@click.option("--out", type=click.Path(path_type=Path), help="Draw it, too, into this .png file.")
@JSON
def data_info(data: Data, seed: int, out: Path | None, as_json: bool) -> None:
    """Print how many clients and examples there are, which labels, and how uneven both are.

    \b
    pocketfed data info --partition dirichlet --alpha 0.3 --clients 20 --out digits.png
    pocketfed data info --dataset shakespeare --data-dir SHAKESPEARE
    """
    from tff_sim.federated_data import make_population

    made = make_population(data.spec(seed))
    summary = made.clients.summary()
    how = "" if made.partition is None else f", {made.partition.scheme}, seed {made.partition.seed}"
    if out is not None:
        _draw(made.clients, f"{made.name}{how}", out)
    if as_json:
        print_json(made.about | {"test_examples": len(made.test)} | summary.to_json())
    else:
        _print(summary, f"{made.name}{how}", len(made.test))


@data.command(name="partition", short_help="Deal a data set, and save who has what.")
@data_options
@_SEED
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The .npz file to write.")
@JSON
def data_partition(data: Data, seed: int, out: Path, as_json: bool) -> None:
    """Deal a data set's examples to clients, save who has what, and print what was made.

    The file holds numbers of examples, and the SHA-256 of the data that they number. 'pocketfed simulate' and 'data
    export' take it with --partition-file, so that an experiment and a fleet of devices have the same clients.
    """
    from tff_sim.federated_data import make_partition
    from tff_sim.partition.file import save_partition

    dataset, partition = make_partition(data.spec(seed))
    summary = partition.summary(dataset.train.y)
    save_partition(partition, out)
    if as_json:
        print_json({"file": str(out), "partition": partition.to_json()} | summary.to_json())
    else:
        _print(summary, f"{dataset.name}, {partition.scheme}, seed {partition.seed}", len(dataset.test))
        click.echo(f"saved in {out}")


@data.command(name="export", short_help="Each client's examples as files for devices.")
@data_options
@_SEED
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option("--packed", is_flag=True, help="One population for 'pocketfed simulate --dataset packed' instead.")
@JSON
def data_export(data: Data, seed: int, out: Path, packed: bool, as_json: bool) -> None:
    """Write each client's examples into OUT/NAME.npz, and the test examples into OUT/_test.npz.

    A device takes its file: 'pocketfed-device run --client NAME --data OUT/NAME.npz'. With --packed, all of them are
    one population on disk, of which a simulation reads only the clients of a round.
    """
    from cli.progress import round_progress
    from tff_sim.federated_data import make_population
    from tff_sim.population.export import export_files, export_packed

    made = make_population(data.spec(seed))
    with round_progress("writing", len(made.clients)) as progress:
        (export_packed if packed else export_files)(made, out, progress)
    if as_json:
        print_json(made.about | {"folder": str(out), "packed": packed, "test_examples": len(made.test)})
    else:
        click.echo(f"{len(made.clients)} clients and {len(made.test)} test examples in {out}")


def _draw(clients: Any, title: str, path: Path) -> None:
    from tff_sim.population.figure import population_figure

    figure = population_figure(clients.sizes, clients.label_counts, title)
    try:
        figure.savefig(path, dpi=120, format="png")
    except OSError as error:
        raise InputError(f"{path}: can't write it: {error.strerror}; change --out") from None


def _print(summary: Summary, title: str, tests: int) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in [*summary.rows(), ("test examples", f"{tests:,}")]:
        table.add_row(name, value)
    console.print(table)
    if summary.labels is None:
        return
    present = [(label, count) for label, count in enumerate(summary.labels) if count]
    shown = sorted(sorted(present, key=lambda pair: -pair[1])[:_WIDEST])
    total, most = sum(summary.labels), max(summary.labels)
    bars = Table(
        title="labels" if len(shown) == len(present) else f"the {_WIDEST} commonest labels", title_justify="left"
    )
    for column in ("label", "count", "share"):
        bars.add_column(column, justify="right")
    bars.add_column("")
    for label, count in shown:
        bars.add_row(str(label), f"{count:,}", f"{count / total:.1%}", "█" * max(1, round(30 * count / most)))
    console.print(bars)
