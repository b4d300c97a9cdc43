"""`pocketfed bench`: the project's benchmarks, each beside its reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.options import print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.result import Result


_Function = TypeVar("_Function", bound=Callable[..., Any])


def _options(function: _Function) -> _Function:
    """What all benchmarks take."""
    options = [
        click.argument("names", nargs=-1, metavar="[NAME]…"),
        click.option("--quick", is_flag=True, help="A few repetitions: to try whether it runs, not how fast."),
        click.option("--out", type=click.Path(path_type=Path), help="Write the JSON into this file, too."),
        click.option("--json", "as_json", is_flag=True, help="Print a JSON list on standard output, nothing else."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@click.group(short_help="Measure speed and memory against references.")
def bench() -> None:
    """Measure speed and memory, each beside a reference.

    Both sides of a ratio are measured in the same run, by turns; below 1 is better than the reference.
    """


@bench.command(name="export", short_help="Training steps, export, a device's memory.")
@_options
def bench_export(names: tuple[str, ...], quick: bool, out: Path | None, as_json: bool) -> None:
    """Measure training steps of exported models, the export itself, and the memory of a device that trains.

    \b
    cnn_step_vs_pytorch        a step of mnist_cnn, B = 10, 1 thread each
    cnn_step_2threads_vs_flex  the same on 2 threads against TensorFlow Lite's recipe with Flex
    mlp_step_vs_pytorch        a step of mnist_2nn, B = 10, 1 thread each
    lstm_step_vs_tensorflow    a step of shakespeare_lstm, B = 10, 2 threads each
    lstm_export_seconds        the export of shakespeare_lstm, but for the import of TensorFlow
    cnn_train_peak_mb          memory of 'pocketfed-device train' on mnist_cnn

    Without a NAME, all of them. Those against PyTorch need 'make bench-setup' first.
    """
    from benchmarks.export import NAMES, run_export_benchmarks
    from cli.progress import round_progress

    _require_writable(out)
    with round_progress("measuring", len(names or NAMES)) as progress:
        results = run_export_benchmarks(names, quick, progress)
    _report(results, out, as_json)


@bench.command(name="device", short_help="Kills, and what memory a training needs.")
@_options
def bench_device(names: tuple[str, ...], quick: bool, out: Path | None, as_json: bool) -> None:
    """Kill a device that takes part in a real server's rounds, and compare the memory that it says it needs.

    \b
    kills_survived           kills at random instants after which state and updates are as they should be
    digits_mlp_memory        what --max-memory takes a training to need, against its peak, B = 20
    mnist_2nn_memory         the same
    mnist_cnn_memory         the same
    shakespeare_lstm_memory  the same

    Without a NAME, all of them; the kills take about ten minutes.
    """
    from benchmarks.device import NAMES, run_device_benchmarks
    from cli.progress import round_progress

    _require_writable(out)
    with round_progress("measuring", len(names or NAMES)) as progress:
        results = run_device_benchmarks(names, quick, progress, lambda line: click.echo(line, err=True))
    _report(results, out, as_json)


@bench.command(name="codec", short_help="Encoded updates: size, error, time, memory.")
@_options
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Folder with MNIST's four files; else the embedded digits."
)
def bench_codec(names: tuple[str, ...], quick: bool, out: Path | None, as_json: bool, data_dir: Path | None) -> None:
    """Measure the codecs on the updates of 100 clients that train for a round, after three of federated averaging.

    \b
    nmse_vs_eden_qN         squared error of the mean over 100 clients of mnist_cnn, against EDEN's
    nmse_vs_eden_mlp_qN     the same of mnist_2nn
    bytes_qN                an update of mnist_cnn, against float32
    encode_vs_step_qN       its encoding against one training step, B = 10, 1 thread each
    encode_vs_step          the slowest of these
    decode_add_vs_plain_qN  decoding and adding it, against plain 8-bit codes in numpy
    encode_extra_memory_qN  what its encoding takes at most, against twice the largest tensor

    N is 8, 4, 2 and 1. Without a NAME, all of them: about 15 minutes. Without --data-dir the clients have 14 of the
    embedded digits each, enlarged to 28×28, instead of 600 examples of MNIST.
    """
    from benchmarks.codec import NAMES, run_codec_benchmarks
    from cli.progress import round_progress

    _require_writable(out)
    with round_progress("measuring", len(names or NAMES)) as progress:
        results = run_codec_benchmarks(names, data_dir, quick, progress)
    _report(results, out, as_json)


@bench.command(name="simulate", short_help="A simulated round, and a simulation's memory.")
@_options
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Folder with MNIST's four files; else the embedded digits."
)
def bench_simulate(names: tuple[str, ...], quick: bool, out: Path | None, as_json: bool, data_dir: Path | None) -> None:
    """Measure simulated rounds beside those of stock TFF: 10 of 100 clients with 600 examples, E = 1, B = 10.

    \b
    mlp_round_vs_stock_tff         a round of mnist_2nn against tff.learning.algorithms.build_weighted_fed_avg
    cnn_round_vs_stock_tff         the same of mnist_cnn
    mlp_round_peak_mb              memory of a simulation of mnist_2nn, all its processes
    mlp_round_device_vs_stock_tff  these with --engine device
    cnn_round_device_vs_stock_tff
    mlp_round_device_peak_mb

    Without a NAME, all of them: about 10 minutes. Without --data-dir the clients have the embedded digits, enlarged to
    28×28, in the place of MNIST.
    """
    from benchmarks.simulate import NAMES, run_simulate_benchmarks
    from cli.progress import round_progress
    from tff_sim.availability import require_tff

    _require_writable(out)
    require_tff()
    with round_progress("measuring", len(names or NAMES)) as progress:
        results = run_simulate_benchmarks(names, data_dir, quick, progress)
    _report(results, out, as_json)


@bench.command(name="server", short_help="The aggregation server under load.")
@_options
def bench_server(names: tuple[str, ...], quick: bool, out: Path | None, as_json: bool) -> None:
    """Put a server with its defaults under load from this machine: thousands of devices that train nothing.

    \b
    reports_per_second_mlp_q4  reports of mnist_2nn accepted, durable and aggregated, with the commit
    reports_per_second_cnn_q8  the same of mnist_cnn
    checkins_per_second        check-ins that are accepted
    checkin_p99_ms             the 99th percentile of 750 a second, from when each was due
    server_peak_mb             the server's memory in a round of 10,000 devices of mnist_2nn, q4
    idle_connections           of 5,000 that nothing comes over, those that the server keeps

    Without a NAME, all of them: about three minutes. Of rates, a ratio above 1 is better: the reference is an ASGI
    endpoint that reads the same requests and knows nobody, and makes each report durable by itself.
    """
    from benchmarks.server.suite import NAMES, run_server_benchmarks
    from cli.progress import round_progress

    _require_writable(out)
    with round_progress("measuring", len(names or NAMES)) as progress:
        results = run_server_benchmarks(names, quick, progress)
    _report(results, out, as_json)


@bench.command(name="server-kills", short_help="A server that is killed, with real devices.")
@click.option("--kills", type=click.IntRange(min=1), default=100, show_default=True, help="How many.")
@click.option("--devices", type=click.IntRange(min=1), default=4, show_default=True, help="Processes that train.")
@click.option("--seed", default=0, show_default=True, help="Of the instants.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON into this file, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, nothing else.")
def bench_server_kills(kills: int, devices: int, seed: int, out: Path | None, as_json: bool) -> None:
    """Kill a server with SIGKILL at random instants while devices train digits_mlp in its rounds.

    In the end every report that a device was told to count must count once, no version may be made twice, and all
    weights must be, bit for bit, those of a second run without kills. 100 kills take 15 to 30 minutes.
    """
    from benchmarks.server_kills import kill_servers, table_of
    from cli.progress import round_progress
    from device_runtime.errors import CheckFailedError

    _require_writable(out)
    with round_progress("killing", kills) as progress:
        account = kill_servers(kills, devices, seed, progress)
    if out is not None:
        out.write_text(json.dumps(account.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    if as_json:
        print_json(account.to_json())
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table("", "", show_header=False)
        for name, value in table_of(account):
            table.add_row(name, value)
        Console().print(table)
    if account.faults:
        raise CheckFailedError(f"after {kills} kills: {account.faults[0]} ({len(account.faults)} faults)")


def _require_writable(out: Path | None) -> None:
    """Told before the minutes of measuring."""
    from device_runtime.errors import InputError

    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise InputError(f"{out}: can't write it: it is a folder, or in none; change --out")


def _report(results: Sequence[Result], out: Path | None, as_json: bool) -> None:
    listed = [result.to_json() for result in results]
    if out is not None:
        out.write_text(json.dumps(listed, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    if as_json:
        print_json(listed)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for title in ("benchmark", "value", "reference", "its value", "ratio"):
        table.add_column(title, no_wrap=title == "benchmark")
    for result in results:
        value, reference = (f"{number:.3g} {result.unit}" for number in (result.value, result.reference_value))
        table.add_row(result.name, value, result.reference, reference, f"{result.ratio:.2f}")
    console = Console()
    console.print(table)
    for note in [f"{result.name}: {result.note}" for result in results if result.note]:
        console.print(note, highlight=False, soft_wrap=True)
