"""`pocketfed parity` and `inspect`: bundles and what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import BUNDLE, JSON, SEED, print_json
from device_runtime.errors import InputError

if TYPE_CHECKING:
    from export.inspection import Inspection
    from export.parity import ParityReport
    from export.profile import Profile
    from models import ModelSpec

_COSTLIEST = 20


@click.command(short_help="Compare training in Keras and in TFLite.")
@BUNDLE
@click.option("--steps", default=60, show_default=True, help="Training steps to compare; at least 60.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Of the synthetic batches.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 1024), help="Of the interpreter.")
@click.option("--keras", "source", help="The model of a bundle that was exported with --keras, as it was given there.")
@click.option("--data", type=click.Path(path_type=Path), help="Examples (.npz: x and y) to measure infer.tflite on.")
@JSON
@click.pass_context
def parity(
    ctx: click.Context,
    bundle: Path,
    steps: int,
    seed: int,
    threads: int,
    source: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Train BUNDLE's model in Keras and in the TFLite interpreter, and compare after every step.

    Both start from the bundle's weights and see the same batches. The inference artifact is compared too; what 8 bits
    cost in accuracy is told. Exit code 1 where they differ by more than float32 explains.
    """
    from cli.progress import round_progress
    from device_runtime.bundle import open_bundle
    from device_runtime.examples import load_examples

    opened = open_bundle(bundle)
    examples = load_examples(data, opened.manifest) if data else None
    from export.parity import check_parity
    from export.user_model import user_spec

    spec = user_spec(source, opened.manifest.loss, opened.manifest.name) if source else _known(opened.manifest.name)

    def tell(step: int) -> None:
        if step % 10 == 0:
            progress(step, "")

    with round_progress("comparing", steps) as progress:
        report = check_parity(opened, steps, seed, threads, tell, spec, examples)
    if as_json:
        print_json(report.to_json())
    else:
        print_parity(report)
    ctx.exit(0 if report.ok else 1)


def _known(name: str) -> ModelSpec:
    import models

    try:
        return models.get(name)
    except models.UnknownModelError as error:
        raise InputError(f"{error}; name a model of your own with --keras, as it was exported") from None


def print_parity(report: ParityReport) -> None:
    """The largest differences as a table, and the verdict."""
    from rich.console import Console
    from rich.table import Table

    from export.parity import TOLERANCE, layer_of

    table = Table("tensor", "largest difference", "relative", title=f"{report.steps} steps, Keras against TFLite")
    for difference in report.differences:
        table.add_row(difference.name, f"{difference.max_abs:.2e}", f"{difference.max_rel:.2e}")
    Console().print(table)
    inference = report.inference
    click.echo(
        f"infer.tflite ({inference.computes_in}), {inference.examples} {'synthetic ' if inference.synthetic else ''}"
        f"examples: {inference.metric} {inference.artifact:.4f}, Keras {inference.keras:.4f}; logits differ by"
        f" {inference.max_rel:.1e}"
    )
    if report.kinks:
        click.echo(f"kinks crossed, and the step's update confirmed, at steps {', '.join(map(str, report.kinks))}")
    if report.ok:
        click.echo(f"parity holds: largest relative difference {report.worst.max_rel:.1e}, tolerance {TOLERANCE:.0e}")
    else:
        layer = layer_of(report.tensor)
        where = f" (layer {layer})" if layer else ""
        click.echo(f"parity FAILS: {report.tensor}{where} differs first, at step {report.step}")


@click.command(short_help="Show a bundle's operators and sizes.")
@BUNDLE
@click.option("--profile", is_flag=True, help="Time every operator of a training step.")
@click.option("--batch-size", default=10, show_default=True, type=click.IntRange(1), help="Of the step to profile.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 1024), help="Of its interpreter.")
@JSON
def inspect(bundle: Path, profile: bool, batch_size: int, threads: int, as_json: bool) -> None:
    """Show what BUNDLE holds: parameters, the examples it takes, operators, sizes; and that none needs Flex.

    Operators are counted in the training artifact itself, in all its subgraphs. With --profile, each operator of a
    training step is timed alone, in the interpreter that devices use, beside the whole step.
    """
    from cli.progress import round_progress
    from device_runtime.bundle import open_bundle

    opened = open_bundle(bundle)
    from export.inspection import inspect_bundle

    inspection = inspect_bundle(opened)
    profiled = None
    if profile:
        from export.profile import profile_bundle

        with round_progress("profiling", 100) as progress:
            profiled = profile_bundle(
                opened,
                batch_size,
                threads,
                lambda done, total: progress(100 * done // total, f"{done} of {total} kinds"),
            )
    if as_json:
        print_json(inspection.to_json() | ({"profile": profiled.to_json()} if profiled else {}))
        return
    _print_inspection(inspection)
    if profiled:
        _print_profile(profiled)


def _print_inspection(inspection: Inspection) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    manifest = inspection.bundle.manifest
    console.print(
        f"{manifest.name} version {manifest.version}, {manifest.parameters:,} parameters,"
        f" identity {inspection.bundle.identity}",
        highlight=False,
        soft_wrap=True,
    )
    examples = Table("array of the examples", "type")
    for spec in manifest.examples:
        examples.add_row(spec.name, str(spec).replace("[", r"\["))
    tensors = Table("weight", "type")
    for spec in manifest.tensors:
        tensors.add_row(spec.name, str(spec).replace("[", r"\["))
    files = Table("file", "bytes")
    for name, size in inspection.files.items():
        files.add_row(name, f"{size:,}")
    operators = Table("operator", "count")
    for name, count in {**inspection.operators.builtin, **inspection.operators.custom}.items():
        operators.add_row(name, str(count))
    for table in (examples, tensors, files, operators):
        console.print(table)
    console.print(
        f"Flex operators: {inspection.operators.flex}; other custom operators: {inspection.operators.other_custom}",
        highlight=False,
    )


def _print_profile(profile: Profile) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    kinds = Table(title=f"a step of {profile.batch_size} examples, {profile.threads} threads")
    costly = Table(title="costliest operators")
    for table, titles in (
        (kinds, ("operator", "count", "ms", "share")),
        (costly, ("operator", "layer", "in", "out", "count", "ms")),
    ):
        for title in titles:
            table.add_column(title, justify="right" if title in ("count", "ms", "share") else "left")
    for name, (count, total) in profile.by_type.items():
        kinds.add_row(name, str(count), f"{total:.3f}", f"{total / profile.step_ms:.1%}")
    rest = profile.step_ms - profile.sum_ms
    kinds.add_row("the rest", str(sum(profile.rest.values())), f"{rest:.3f}", f"{rest / profile.step_ms:.1%}")
    kinds.add_row("the whole step", "", f"{profile.step_ms:.3f}", "100.0%")
    for one in profile.operators[:_COSTLIEST]:
        costly.add_row(one.operator, one.layer, one.inputs, one.outputs, str(one.count), f"{one.total_ms:.3f}")
    console.print(kinds)
    console.print(costly)
    click.echo(
        "Timed one by one, operators find their inputs in the cache. The rest is what they lose to it in a step, and"
        f" what was not timed: {', '.join(f'{count} {name}' for name, count in profile.rest.items())}."
    )
