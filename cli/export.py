"""`pocketfed export`: a model of the registry, or a user's own, as a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import JSON, MODEL_HELP, SEED, client_optimizer, optimizer_options, print_json

if TYPE_CHECKING:
    from models import ClientOptimizer, ModelSpec


@click.command(short_help="Make a bundle that devices train.", epilog=f"Models: {MODEL_HELP}")
@click.argument("model", required=False)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the bundle.")
@click.option("--keras", "source", metavar="FILE|MODULE:FUNCTION", help="A model of your own, in place of MODEL.")
@click.option("--name", help="Of the bundle of your own model; by default the model's.")
@click.option("--loss", help="Of your own model, from logits, such as sparse_categorical_crossentropy.")
@click.option("--metric", help="Of your own model; by default accuracy, or mean_absolute_error without classes.")
@optimizer_options
@click.option(
    "--weights", type=click.Path(path_type=Path), help="safetensors file to start from, such as a simulation's."
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=SEED,
    help="Of MODEL's initial weights, where --weights is not given, and of the golden batch.",
)
@click.option("--int8", is_flag=True, help="Quantise infer.tflite to 8 bits; needs --representative.")
@click.option(
    "--representative", type=click.Path(path_type=Path), help="Examples (.npz: x) to find the ranges for --int8."
)
@click.option(
    "--bundle-version", default=1, show_default=True, type=click.IntRange(min=0), help="Devices refuse older."
)
@click.option("--sign", "key", type=click.Path(path_type=Path), help="File of the private key to sign the bundle with.")
@JSON
def export(
    model: str | None,
    out: Path,
    source: str | None,
    name: str | None,
    loss: str | None,
    metric: str | None,
    optimizer: str,
    momentum: float,
    clip_norm: float | None,
    weights: Path | None,
    seed: int,
    int8: bool,
    representative: Path | None,
    bundle_version: int,
    key: Path | None,
    as_json: bool,
) -> None:
    """Export MODEL as a bundle that devices train, or with --keras a model of your own.

    It becomes the folder OUT/MODEL-VERSION.bundle.

    The training artifact consists of TFLite builtin operators only. Before anything is written it is run,
    and must compute what Keras computes.

    \b
    pocketfed export mnist_cnn --out bundles
    pocketfed export --keras my.keras --loss sparse_categorical_crossentropy --out bundles
    """
    _check_usage(model, source, {"--name": name, "--loss": loss, "--metric": metric}, int8, representative)
    from device_runtime.keys import key_id, read_private_key

    private = read_private_key(key) if key else None  # a wrong key is told before TensorFlow takes its seconds
    from export.bundle_writer import export_bundle
    from export.user_model import read_representative

    chosen = client_optimizer(optimizer, momentum, clip_norm)
    spec = _spec(model, source, str(loss), name, metric, chosen)
    inputs = read_representative(representative, spec) if representative else None
    bundle = export_bundle(spec, out, bundle_version, seed, weights, private, inputs)
    made = {"bundle": str(bundle.path), "identity": bundle.identity, "parameters": bundle.manifest.parameters}
    told = f"{bundle.path}: {bundle.manifest.parameters:,} parameters, identity {bundle.identity[:16]}…"
    if private is not None:
        signer = key_id(private.public_key())
        made, told = made | {"key_id": signer}, f"{told}, signed with the key {signer}"
    if as_json:
        print_json(made)
    else:
        click.echo(told)


def _check_usage(
    model: str | None, source: str | None, own: dict[str, str | None], int8: bool, representative: Path | None
) -> None:
    if (model is None) == (source is None):
        raise click.UsageError("give either MODEL or --keras")
    if source is not None and own["--loss"] is None:
        raise click.UsageError("--keras needs --loss, such as --loss sparse_categorical_crossentropy")
    given = [option for option, value in own.items() if value is not None]
    if model is not None and given:
        raise click.UsageError(f"{given[0]} is for a model of your own; {model} has its own")
    if int8 != (representative is not None):
        raise click.UsageError("--int8 and --representative go together")


def _spec(
    model: str | None, source: str | None, loss: str, name: str | None, metric: str | None, optimizer: ClientOptimizer
) -> ModelSpec:
    import models
    from export.user_model import user_spec

    if source is not None:
        return user_spec(source, loss, name, metric, optimizer)
    return replace(models.get(str(model)), optimizer=optimizer)
