"""The options of `pocketfed serve`, by what they are about, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from aggregation_server.access.quotas import Quotas
    from aggregation_server.server import Listening
    from aggregation_server.task import Task

_Function = TypeVar("_Function", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path)
# Help loads no NumPy: the names stand here once more, and a test compares.
SERVER_OPTIMIZERS = ("sgd", "momentum", "fedadagrad", "fedadam", "fedyogi")
AGGREGATORS = ("mean", "median", "trimmed_mean")

_LISTENING = (
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on."),
    click.option(
        "--port",
        default=8080,
        show_default=True,
        type=click.IntRange(0, 65_535),
        help="Port to listen on; 0 takes a free one.",
    ),
    click.option("--tls-cert", type=_FILE, help="Certificate chain for TLS, a PEM file."),
    click.option("--tls-key", type=_FILE, help="Its private key, a PEM file."),
    click.option("--insecure", is_flag=True, help="Plain HTTP for other machines too: behind a proxy that speaks TLS."),
    click.option("--open-enrolment", is_flag=True, help="Devices need no code; for trials on this machine alone."),
    click.option(
        "--trusted-proxy",
        "trusted_proxies",
        metavar="ADDRESS",
        multiple=True,
        help="In front of this server; its X-Forwarded-For is believed. Can be given again.",
    ),
)
_QUOTAS = (
    click.option("--address-rate", default=200.0, show_default=True, help="Requests a second of one address; 0: any."),
    click.option("--device-rate", default=20.0, show_default=True, help="Requests a second of one device; 0: any."),
    click.option(
        "--failure-rate", default=2.0, show_default=True, help="Refused callers a second of one address; 0: any."
    ),
    click.option("--connections", default=10_000, show_default=True, help="That are open at once."),
    click.option("--idle-seconds", default=75.0, show_default=True, help="That a connection may wait for a request."),
    click.option("--slow-seconds", default=20.0, show_default=True, help="That an upload or download may stand still."),
)
_LOG = (click.option("--log-json", is_flag=True, help="Log one JSON object a line on standard error."),)
_STATE = (
    click.option(
        "--db", metavar="URL", help="sqlite:///FILE or postgresql://…; by default the file pocketfed-MODEL.db."
    ),
    click.option("--spool", type=_FILE, help="Folder for the open round's reports; by default pocketfed-MODEL.spool."),
    click.option("--keys", type=_FILE, default=Path(), help="Folder for operator.key and viewer.key; by default here."),
    click.option("--keep-versions", default=50, show_default=True, help="Versions whose weights can be had."),
)
_ROUNDS = (
    click.option("--population", help="Name under which devices check in; by default the model's name."),
    click.option("--goal", default=5, show_default=True, help="Reports that complete a round."),
    click.option("--over-selection", default=1.3, show_default=True, help="Devices accepted for each of these."),
    click.option("--minimum", default=1, show_default=True, help="Reports that suffice at the deadline."),
    click.option("--selection-seconds", default=0.0, show_default=True, help="How long a selection is open at least."),
    click.option(
        "--selection-timeout", default=60.0, show_default=True, help="Seconds until a round starts with fewer."
    ),
    click.option("--reporting-timeout", default=180.0, show_default=True, help="Seconds until a round's deadline."),
    click.option(
        "--rounds", type=click.IntRange(min=1), help="Versions until the task is complete; by default no end."
    ),
    click.option("--evaluate-every", type=click.IntRange(min=1), help="Versions from one evaluation to the next."),
    click.option(
        "--participation-seconds", default=0.0, show_default=True, help="Between a device's rounds, at least."
    ),
    click.option("--retry-seconds", default=5.0, show_default=True, help="For which a rejected device waits at least."),
    click.option(
        "--checkin-rate", default=500.0, show_default=True, help="Check-ins a second at this server, at most."
    ),
)
_REPORTS = (
    click.option("--codec", default="q8", show_default=True, help="Of updates: f32, f16, q8, q4, q2 or q1."),
    click.option(
        "--downlink",
        default="f32",
        show_default=True,
        help="How weights travel: f32 or f16 whole; q8, q4, q2 or q1 as the difference to the version before.",
    ),
    click.option("--max-update-norm", type=float, help="L2 norm above which an update is refused."),
    click.option("--max-examples", type=int, help="Number of examples above which an update is refused."),
    click.option("--aggregator", type=click.Choice(AGGREGATORS), default="mean", show_default=True, help="Of updates."),
    click.option("--shards", type=int, help="Of median and trimmed_mean: values a weight has; 4 bytes a weight each."),
    click.option("--trim", type=float, help="Of trimmed_mean: share left out at each end; 0.1."),
    click.option(
        "--server-optimizer",
        type=click.Choice(SERVER_OPTIMIZERS),
        default="sgd",
        show_default=True,
        help="What makes a step of the aggregate.",
    ),
    click.option("--server-lr", type=float, help="Its learning rate; 1, of the adaptive ones 0.01."),
    click.option("--server-momentum", type=float, help="Of momentum; 0.9."),
    click.option("--server-beta1", type=float, help="Of the adaptive ones: 0.9, of fedadagrad 0."),
    click.option("--server-beta2", type=float, help="Of fedadam and fedyogi; 0.99."),
    click.option("--server-tau", type=float, help="Of the adaptive ones; 0.001."),
)


def serve_options(function: _Function) -> _Function:
    """All of them, but for those of the client's work."""
    for option in reversed((*_LISTENING, *_QUOTAS, *_LOG, *_STATE, *_ROUNDS, *_REPORTS)):
        function = option(function)
    return function


def task_of(options: Mapping[str, Any]) -> Task:
    """What the fleet is to do.

    Raises:
        InputError: an option is out of range, or two do not go together.
    """
    from aggregation_server.aggregation.robust import Aggregation
    from aggregation_server.aggregation.server_optimizer import ServerOptimizer
    from aggregation_server.aggregation.validation import Bounds
    from aggregation_server.rounds import RoundConfig
    from aggregation_server.task import Task
    from device_runtime.work import ClientWork

    names = ("epochs", "batch_size", "learning_rate", "proximal", "seed", "codec")
    server = ("optimizer", "lr", "momentum", "beta1", "beta2", "tau")
    straight = ("population", "seed", "rounds", "retry_seconds", "checkin_rate", "downlink", "evaluate_every")
    return Task(
        round=RoundConfig(
            options["goal"],
            options["over_selection"],
            options["minimum"],
            options["selection_timeout"],
            options["reporting_timeout"],
            options["selection_seconds"],
        ),
        work=ClientWork(*(options[name] for name in names)),
        aggregation=Aggregation(options["aggregator"], options["shards"], options["trim"]),
        optimizer=ServerOptimizer(*(options[f"server_{name}"] for name in server)),
        bounds=Bounds(options["max_update_norm"], options["max_examples"]),
        **{name: options[name] for name in (*straight, "participation_seconds", "keep_versions")},
    )


def quotas_of(options: Mapping[str, Any]) -> Quotas:
    """How much the server's callers may ask.

    Raises:
        InputError: a figure or an address that can't be.
    """
    from aggregation_server.access.quotas import Quotas

    names = ("address_rate", "device_rate", "failure_rate", "connections", "idle_seconds", "slow_seconds")
    return Quotas(*(options[name] for name in (*names, "trusted_proxies")))


def listening_of(options: Mapping[str, Any]) -> Listening:
    """Where the server listens.

    Raises:
        InputError: it would speak without TLS to other machines.
    """
    from aggregation_server.server import Listening

    names = ("host", "port", "tls_cert", "tls_key", "insecure")
    return Listening(*(options[name] for name in names))
