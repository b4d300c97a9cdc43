"""``pocketfed-device conditions``: may this device train now? And the options by which `run` is told when it may."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.commands.options import EXIT_CODES, above_zero
from device_runtime.errors import InputError

if TYPE_CHECKING:
    from device_runtime.commands.options import Subparsers
    from device_runtime.eligibility.conditions import Conditions, Measured

NAMES = ("idle", "charging", "unmetered", "cool")
_MAX_CELSIUS = 70.0
_MAX_LOAD = 0.3


def add(commands: Subparsers) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "conditions",
        help="tell whether this device may train now",
        description="Measure each condition, or read what the app says, and tell whether the device may train now.",
        epilog=EXIT_CODES,
    )
    parser.set_defaults(command=_conditions)
    add_conditions(parser, default="all")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_conditions(parser: argparse.ArgumentParser, default: str = "none") -> None:
    """The options for `conditions`."""
    group = parser.add_argument_group("when the device trains")
    group.add_argument(
        "--require",
        type=_names,
        metavar="NAMES",
        help=f"conditions without which it does not: {','.join(NAMES)}, or some of them, all or none ({default};"
        " all with --conditions)",
    )
    group.add_argument(
        "--max-celsius", type=_limit, metavar="T", help=f"what is cool; requires it ({_MAX_CELSIUS:.0f})"
    )
    group.add_argument(
        "--max-load",
        type=_limit,
        metavar="SHARE",
        help=f"what is idle: the share of the processors that others use; requires it ({_MAX_LOAD})",
    )
    group.add_argument(
        "--unknown",
        choices=("wait", "train"),
        default="wait",
        help="what to do where a required condition can't be measured (%(default)s)",
    )
    group.add_argument(
        "--conditions", type=Path, metavar="FILE", help="the app says in this JSON file; nothing is measured"
    )
    parser.set_defaults(required_by_default=() if default == "none" else NAMES)


def conditions(options: argparse.Namespace) -> Conditions:
    """The conditions that the options ask for.

    Raises:
        InputError: options that exclude each other.
    """
    required = _required(options)
    if options.conditions is None:
        return _measured(options, required)
    if options.max_celsius is not None or options.max_load is not None:
        raise InputError("--max-celsius and --max-load are for what is measured; with --conditions the app decides")

    from device_runtime.eligibility.by_app import ConditionsFile

    return ConditionsFile(options.conditions, required)


def _conditions(options: argparse.Namespace) -> int:
    asked, required = conditions(options), _required(options)
    reason = asked.unmet()
    values: dict[str, str] = {}
    met: dict[str, bool | None] = {}
    if options.conditions is None:
        for name, reading in _measured(options, NAMES).readings().items():
            values[name] = reading.value
            met[name] = reading.unmet is None if reading.known else None
    else:
        from device_runtime.eligibility.by_app import ConditionsFile

        said = ConditionsFile(options.conditions).read()
        met = dict.fromkeys(NAMES) if isinstance(said, str) else {name: said.get(name) for name in NAMES}
        values = {name: "not said" if value is None else "said" for name, value in met.items()}
    if options.json:
        probes = {name: {"value": values[name], "met": met[name], "required": name in required} for name in NAMES}
        print(json.dumps({"eligible": reason is None, "reason": reason, "conditions": probes}))
        return 0 if reason is None else 1
    for name in NAMES:
        verdict = {True: "yes", False: "no", None: "unknown"}[met[name]]
        print(f"{name:<10} {verdict:<8} {values[name]}{'' if name in required else ' (not required)'}")
    print("may train" if reason is None else f"may not train: {reason}")
    return 0 if reason is None else 1


def _required(options: argparse.Namespace) -> tuple[str, ...]:
    names: tuple[str, ...] | None = options.require
    if names is None:
        names = NAMES if options.conditions is not None else options.required_by_default
    implied = {"cool": options.max_celsius, "idle": options.max_load}
    return tuple(name for name in NAMES if name in names or implied.get(name) is not None)


def _measured(options: argparse.Namespace, names: tuple[str, ...]) -> Measured:
    from device_runtime.eligibility.conditions import Measured
    from device_runtime.eligibility.load import Load
    from device_runtime.eligibility.network import Network
    from device_runtime.eligibility.power import Power
    from device_runtime.eligibility.temperature import Temperature

    celsius = _MAX_CELSIUS if options.max_celsius is None else options.max_celsius
    load = _MAX_LOAD if options.max_load is None else options.max_load
    probes = (Load(load), Power(), Network(), Temperature(celsius))
    return Measured([probe for probe in probes if probe.name in names], options.unknown == "train")


def _names(text: str) -> tuple[str, ...]:
    if text in ("all", "none"):
        return NAMES if text == "all" else ()
    names = tuple(text.split(","))
    if not set(names) <= set(NAMES):
        raise argparse.ArgumentTypeError(f"{text} is not all, none, or some of {','.join(NAMES)}")
    return names


def _limit(text: str) -> float:
    return above_zero(text, "a number", 1000)
