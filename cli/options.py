"""Options that several commands share, and how results are printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from models import ClientOptimizer

_Function = TypeVar("_Function", bound=Callable[..., Any])

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output, nothing else.")
BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))
# Help loads no TensorFlow, and the registry does: so the names stand here once more, and a test compares.
MODEL_NAMES = ("cifar_cnn", "digits_mlp", "mnist_2nn", "mnist_cnn", "shakespeare_lstm", "word_lstm")
MODEL_HELP = f"{', '.join(MODEL_NAMES[:-1])} or {MODEL_NAMES[-1]}."
OPTIMIZER_NAMES = ("sgd", "momentum", "adam")
SEED = click.IntRange(0, 2**53 - 1)  # as `device_runtime.work.ClientWork` takes them


class BatchSize(click.ParamType[int | None]):
    """A number of examples, or ``all`` for the paper's B = ∞."""

    name = "B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value is None or value == "all":
            return None
        if isinstance(value, int):
            return value
        if not (value.isascii() and value.isdigit()) or int(value) < 1:
            self.fail(f"{value!r} is not a whole number of at least 1, nor 'all'", param, ctx)
        return int(value)


def client_work(epochs: int) -> Callable[[_Function], _Function]:
    """The options of a client's local training; --epochs with this default."""
    options = [
        click.option("--epochs", default=epochs, show_default=True, help="E, passes over a client's examples."),
        click.option(
            "--batch-size", type=BatchSize(), default=10, show_default=True, help="B, or 'all' for the whole local set."
        ),
        click.option("--lr", "learning_rate", default=0.1, show_default=True, help="Learning rate of the clients."),
        click.option("--proximal", default=0.0, show_default=True, help="Weight of FedProx's proximal term."),
        click.option("--seed", default=0, show_default=True, help="Of everything random: the same seed, the same run."),
    ]

    def decorate(function: _Function) -> _Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def optimizer_options(function: _Function) -> _Function:
    """The options that say how a client makes steps of gradients; see `client_optimizer`."""
    options = [
        click.option(
            "--optimizer", default="sgd", show_default=True, type=click.Choice(OPTIMIZER_NAMES), help="Of the clients."
        ),
        click.option("--momentum", default=0.9, show_default=True, help="Of the optimizer momentum."),
        click.option("--clip-norm", type=float, help="Largest global norm of a gradient; no limit by default."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def client_optimizer(name: str, momentum: float, clip_norm: float | None) -> ClientOptimizer:
    """What `optimizer_options` say; a value out of range is a wrong usage."""
    from models import ClientOptimizer

    try:
        return ClientOptimizer(name, momentum=momentum, clip_norm=clip_norm)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))
