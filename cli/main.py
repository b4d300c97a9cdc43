"""Entry point of `pocketfed`: the commands, and how errors become messages and exit codes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from cli.bench import bench
from cli.bundles import inspect, parity
from cli.data import data
from cli.demo import demo
from cli.export import export
from cli.flash import flash
from cli.people import devices, enrol, pause, release, resume, revoke, rollback, rounds
from cli.reproduce import reproduce
from cli.serve import serve
from cli.signing import keygen, sign, verify
from cli.simulate import simulate
from cli.sweep import sweep
from cli.termination import TerminatedError, terminable
from cli.worker import worker
from device_runtime import __version__
from device_runtime.errors import PocketfedError

_INTERRUPTED = 130
_TERMINATED = 143


@click.group(
    epilog="Exit codes: 0 done, 1 a check failed, 2 wrong usage or input, 3 network or server, 4 integrity or"
    " authenticity.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="pocketfed")
def app() -> None:
    """Train on the phone, learn from the fleet.

    Simulate Federated Averaging on real data, export the same Keras model for training on devices, check
    that both compute the same, and run rounds with a fleet. Start with 'pocketfed demo'.
    """


_COMMANDS = (
    *(demo, data, simulate, sweep, reproduce, worker, export, parity, inspect),
    *(keygen, sign, verify, flash, serve),
    *(enrol, revoke, devices, rounds, pause, resume, rollback, release, bench),
)
for command in _COMMANDS:
    app.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    # Keras and matplotlib write settings where they start, and Keras' can change a model: neither in the user's home.
    cache = Path(sys.prefix) / "var" / "pocketfed"
    os.environ.setdefault("KERAS_HOME", str(cache / "keras"))
    os.environ.setdefault("MPLCONFIGDIR", str(cache / "matplotlib"))
    # TensorFlow's notes about the processor and missing GPUs are not for the users of these commands.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in ("absl", "tensorflow"):
        # A filter, because absl sets its logger's level anew when it is imported.
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)
    try:
        with terminable():
            return int(app.main(arguments, prog_name="pocketfed", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except PocketfedError as error:
        click.echo(f"pocketfed: {error}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("pocketfed: interrupted", err=True)
        return _INTERRUPTED
    except TerminatedError:
        click.echo("pocketfed: terminated", err=True)
        return _TERMINATED
    except LookupError as error:
        return _unknown_model(error)


def _unknown_model(error: LookupError) -> int:
    # The package `models` knows TensorFlow alone, so its one error is not a PocketfedError.
    registry = sys.modules.get("models.registry")
    if registry is None or not isinstance(error, registry.UnknownModelError):
        raise error
    click.echo(f"pocketfed: {error}", err=True)
    return PocketfedError.exit_code


if __name__ == "__main__":
    sys.exit(main())
