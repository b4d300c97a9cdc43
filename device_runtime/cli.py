"""The command line of a device: ``pocketfed-device``. The commands are in `device_runtime.commands`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from device_runtime import __version__
from device_runtime.commands import conditions, data, enrol, install, run, selftest, systemd_unit, train
from device_runtime.commands.options import EXIT_CODES
from device_runtime.errors import PocketfedError

_COMMANDS = (enrol, run, train, selftest, install, data, conditions, systemd_unit)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, call, print; the exit code."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except PocketfedError as error:
        return _fail(options, str(error), error.exit_code)
    except MemoryError:
        limit = " that --max-memory allows" if getattr(options, "max_memory", None) is not None else ""
        return _fail(options, f"the memory{limit} is not enough; train with smaller batches or on fewer examples", 2)
    except KeyboardInterrupt:
        return _fail(options, "interrupted", 130)


def _fail(options: argparse.Namespace, message: str, exit_code: int) -> int:
    if getattr(options, "log_json", False):
        from device_runtime.events import Events

        Events(as_json=True).tell("error", message=message, exit_code=exit_code)
    else:
        print(f"pocketfed-device: {message}", file=sys.stderr)
    return exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pocketfed-device",
        description="Train a pocketfed bundle on this device's own data; only the change of the weights leaves it.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"pocketfed-device {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
