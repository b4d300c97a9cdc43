"""``pocketfed-device systemd-unit``: print the unit that runs this program as a service."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.commands.options import EXIT_CODES
from device_runtime.errors import InputError

if TYPE_CHECKING:
    from device_runtime.commands.options import Subparsers

_UNIT = Path(__file__).parents[1] / "systemd" / "pocketfed-device.service"
_PLAIN = re.compile(r"/[A-Za-z0-9/._+@-]+")  # others have a meaning in a unit file


def add(commands: Subparsers) -> None:
    """Add the command's parser."""
    unit = commands.add_parser(
        "systemd-unit",
        help="print the systemd unit for this device",
        description="Print the systemd unit that takes part in rounds as a service, with few rights and little of the"
        " machine; its head says what /etc/pocketfed-device.env holds.",
        epilog=EXIT_CODES,
    )
    unit.set_defaults(command=_systemd_unit)
    unit.add_argument(
        "--program", type=Path, default=Path(sys.argv[0]), metavar="FILE", help="what the unit runs (this program)"
    )


def _systemd_unit(options: argparse.Namespace) -> int:
    program = str(options.program.absolute())
    if not _PLAIN.fullmatch(program):
        raise InputError(
            f"{program}: expected a path of letters, digits and '/._+@-', which a unit file takes as they are;"
            " name another one with --program"
        )
    print(_UNIT.read_text(encoding="utf-8").replace("@PROGRAM@", program), end="")
    return 0
