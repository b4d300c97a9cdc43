"""``pocketfed-device install``: put a bundle in place of the one that is installed, or go back to the previous one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_runtime.commands.options import EXIT_CODES, add_root, add_threads, add_trusted_keys, root, trusted
from device_runtime.errors import InputError

if TYPE_CHECKING:
    from device_runtime.commands.options import Subparsers
    from device_runtime.installation import Installation
    from device_runtime.installation_state import Slot, State


def add(commands: Subparsers) -> None:
    """Add the command's parser."""
    install = commands.add_parser(
        "install",
        help="install a bundle, or go back to the previous one",
        description="Verify a bundle, copy it, self-test the copy on this device, and switch to it by one rename; the"
        " last good one stays to go back to. Whatever fails, even the power, leaves a bundle that works.",
        epilog=EXIT_CODES,
    )
    install.set_defaults(command=_install)
    install.add_argument(
        "bundle", nargs="?", type=Path, metavar="BUNDLE", help="the bundle, or the folder that holds exactly one"
    )
    install.add_argument("--rollback", action="store_true", help="go back to the previous bundle")
    install.add_argument("--list", action="store_true", help="show what is installed; changes nothing")
    add_root(install)
    install.add_argument("--json", action="store_true", help="print one JSON object")
    add_threads(install)
    add_trusted_keys(install)


def _install(options: argparse.Namespace) -> int:
    if (options.bundle is not None) + options.rollback + options.list != 1:
        raise InputError("install: expected one of BUNDLE, --rollback and --list")
    from device_runtime.installation import Installation

    installation = Installation(root(options))
    if options.list:
        state = installation.read()
        _print(_report(installation, state), options.json)
        return 0
    keys = trusted(options)
    if options.rollback:
        change = installation.rollback(keys, options.threads)
    else:
        change = installation.install(options.bundle, keys, options.threads)
    from device_runtime.interpreter import runtime_version

    selftest = {"runtime": runtime_version(), "max_rel": change.selftest.max_rel, "tensor": change.selftest.tensor}
    _print({"action": change.action, **_report(installation, change.state), "selftest": selftest}, options.json)
    return 0


def _report(installation: Installation, state: State) -> dict[str, Any]:
    def slot(value: Slot | None) -> dict[str, Any] | None:
        if value is None:
            return None
        return {
            "name": value.release.name,
            "version": value.release.version,
            "identity": value.release.identity,
            "path": str(installation.path(value)),
            "intact": installation.bundle(value) is not None,
        }

    return {
        "root": str(installation.root),
        "current": slot(state.current),
        "previous": slot(state.previous),
        "newest": {name: release.version for name, release in state.newest.items()},
    }


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report))
        return
    current = report["current"]
    if current is None:
        print(f"{report['root']}: nothing is installed")
        return
    if "action" in report:
        result = report["selftest"]
        action = {
            "installed": "installed",
            "unchanged": "is installed already; verified anew",
            "rolled back": "is current again",
        }[report["action"]]
        print(
            f"{_told(current)}: {action}; self-test passed on {result['runtime']}: largest relative difference"
            f" {result['max_rel']:.1e} ({result['tensor']})"
        )
    else:
        print(f"current: {_told(current)}")
    previous = report["previous"]
    print(f"previous: {_told(previous) if previous else 'none'}")


def _told(slot: dict[str, Any]) -> str:
    damaged = "" if slot["intact"] else ", DAMAGED: install it again"
    return f"{slot['name']} version {slot['version']} ({slot['identity'][:16]}…){damaged}"
