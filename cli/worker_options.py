"""The options that say which machines compute a simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from tff_sim.workers.addresses import Workers

_Function = TypeVar("_Function", bound=Callable[..., Any])
_SECONDS = click.FloatRange(min=0, min_open=True)


def worker_options(function: _Function) -> _Function:
    """``--workers`` and their time limits; see `chosen_workers`."""
    options = [
        click.option("--workers", metavar="HOST:PORT,…", help="Compute on these, where 'pocketfed worker' runs."),
        click.option(
            "--worker-timeout",
            type=_SECONDS,
            default=30.0,
            show_default=True,
            help="Seconds without any answer until a worker is left out and its share goes to the others.",
        ),
        click.option(
            "--round-timeout",
            type=_SECONDS,
            help="Seconds that a worker may take for its share of a round; without it, as long as it answers.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def chosen_workers(addresses: str | None, worker_timeout: float, round_timeout: float | None) -> Workers | None:
    """What `worker_options` say; None for this machine alone.

    Raises:
        InputError: an address is none, or is named twice.
    """
    from tff_sim.workers.addresses import Workers, parse_addresses

    return None if addresses is None else Workers(parse_addresses(addresses), worker_timeout, round_timeout)
