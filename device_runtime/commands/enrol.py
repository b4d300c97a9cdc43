"""``pocketfed-device enrol``: make this device known to a server."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from device_runtime.commands.options import EXIT_CODES, add_log_json
from device_runtime.commands.server_options import add_server, code, credentials, transport

if TYPE_CHECKING:
    from device_runtime.commands.options import Subparsers


def add(commands: Subparsers) -> None:
    """Add the command's parser."""
    enrol = commands.add_parser(
        "enrol",
        help="make this device known to a server, once",
        description="Draw a secret, keep it, and have a server take it, by which it knows this device from then on. The"
        " same command goes on where an earlier one broke off.",
        epilog=EXIT_CODES,
    )
    enrol.set_defaults(command=_enrol)
    add_server(enrol)
    add_log_json(enrol)


def _enrol(options: argparse.Namespace) -> int:
    from device_runtime.enrolment import enrol
    from device_runtime.events import Events
    from device_runtime.server_client import ServerClient

    connection = transport(options)
    enrol(ServerClient(connection), credentials(options, connection.server), code(options))
    text = f"enrolled as {options.client!r} at {connection.server}"
    Events(options.log_json).tell("enrolled", text, client=options.client, server=connection.server)
    return 0
