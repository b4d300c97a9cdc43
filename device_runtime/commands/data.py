"""``pocketfed-device data``: add to a local store of examples, look at it, delete from it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_runtime.commands.options import EXIT_CODES, add_trusted_keys, positive, seconds, trusted
from device_runtime.errors import InputError

if TYPE_CHECKING:
    from device_runtime.commands.options import Subparsers
    from device_runtime.examples import ExampleTypes
    from device_runtime.local_store import LocalStore

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SIZES = {"K": 10**3, "M": 10**6, "G": 10**9}


def add(commands: Subparsers) -> None:
    """Add the command's parser."""
    data = commands.add_parser(
        "data",
        help="keep local examples in a store",
        description="Keep this device's examples in a store, to which an app can add while rounds go on.",
        epilog=EXIT_CODES,
    )
    actions = data.add_subparsers(required=True, metavar="ACTION")

    adding = _action(actions, "add", _add, "add the examples of a file, all or none; makes the store if need be")
    adding.add_argument("file", type=Path, metavar="FILE", help=".npz with x and y, or CSV with a header")
    adding.add_argument("--for", dest="bundle", type=Path, metavar="BUNDLE", help="whose examples a new store is for")
    adding.add_argument("--label", default="y", metavar="NAME", help="the label's column in CSV (%(default)s)")
    _add_limits(adding)
    add_trusted_keys(adding)

    info = _action(actions, "info", _info, "tell what a store holds")
    info.add_argument("--json", action="store_true", help="print one JSON object")

    deleting = _action(actions, "delete", _delete, "delete examples, and their bytes from the disk's files")
    which = deleting.add_mutually_exclusive_group(required=True)
    which.add_argument("--id", type=positive, action="append", metavar="N", help="the example with this id; repeatable")
    which.add_argument("--older-than", type=_duration, metavar="AGE", help="what was added longer ago, such as 30d")
    which.add_argument("--all", action="store_true", help="all of them")

    expiring = _action(actions, "expire", _expire, "delete what is beyond the limits, which can be set here")
    _add_limits(expiring)


def _action(
    actions: Subparsers, name: str, command: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=EXIT_CODES)
    parser.set_defaults(command=command)
    parser.add_argument("store", type=Path, metavar="STORE", help="the store's file")
    return parser


def _add_limits(parser: argparse.ArgumentParser) -> None:
    kept = "; the store keeps the limit, 'none' lifts it"
    parser.add_argument("--max-age", type=_or_none(_duration), metavar="AGE", help=f"such as 30d, 12h, 90m, 45s{kept}")
    parser.add_argument("--max-bytes", type=_or_none(_size), metavar="SIZE", help=f"of its files, such as 50M{kept}")
    parser.add_argument("--max-examples", type=_or_none(positive), metavar="N", help=f"the newest N{kept}")


def _add(options: argparse.Namespace) -> int:
    from device_runtime.local_store import LocalStore
    from device_runtime.store_file import exists

    if options.bundle is not None:
        from device_runtime.bundle import open_bundle
        from device_runtime.examples import ExampleTypes

        types = ExampleTypes.of(open_bundle(options.bundle, trusted(options)).manifest)
    elif not exists(options.store):
        raise InputError(f"{options.store}: no such store; name the bundle that a new one is for with --for BUNDLE")
    else:
        with LocalStore(options.store) as store:
            types = store.types
    arrays = _read(options.file, types, options.label)  # before there is a store, for it may be refused
    with LocalStore(options.store, types) as store:
        dropped = _set_limits(store, options)
        added = store.add(arrays.x, arrays.y)
        dropped += added.dropped
        print(f"{options.store}: {len(arrays)} examples added, {dropped} dropped, {store.info().examples} in all")
    return 0


def _read(path: Path, types: ExampleTypes, label: str) -> Any:
    from device_runtime.csv_examples import read_csv
    from device_runtime.examples import read_npz

    named_csv = path.suffix.lower() == ".csv"
    return types.check(read_csv(path, types, label) if named_csv else read_npz(path), str(path))


def _info(options: argparse.Namespace) -> int:
    from device_runtime.local_store import LocalStore

    with LocalStore(options.store) as store:
        info, types = store.info(), store.types
    if options.json:
        print(json.dumps({**asdict(info), "types": types.to_json()}))
        return 0
    print(f"{options.store}: {info.examples} examples of {types}, {info.bytes} bytes")
    if info.oldest is not None and info.newest is not None:
        print(f"added from {_when(info.oldest)} to {_when(info.newest)}")
    limits = [f"{name.replace('_', ' ')} {value}" for name, value in asdict(info.limits).items() if value is not None]
    print(f"limits: {', '.join(limits) or 'none'}")
    return 0


def _delete(options: argparse.Namespace) -> int:
    from device_runtime.local_store import LocalStore

    with LocalStore(options.store) as store:
        if options.all:
            number = store.clear()
        elif options.id:
            number = store.delete(options.id)
        else:
            number = store.delete_older_than(options.older_than)
        print(f"{options.store}: {number} examples deleted, {store.info().examples} left")
    return 0


def _expire(options: argparse.Namespace) -> int:
    from device_runtime.local_store import LocalStore

    with LocalStore(options.store) as store:
        number = _set_limits(store, options) + store.expire()
        store.empty_journal()
        print(f"{options.store}: {number} examples dropped, {store.info().examples} left")
    return 0


def _set_limits(store: LocalStore, options: argparse.Namespace) -> int:
    from device_runtime.local_store import Limits

    given = {f.name: getattr(options, f.name) for f in fields(Limits) if getattr(options, f.name) is not None}
    if not given:
        return 0
    return store.set_limits(replace(store.limits, **{n: None if v == "none" else v for n, v in given.items()}))


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def _or_none(parse: Callable[[str], float]) -> Callable[[str], float | str]:
    return lambda text: text if text == "none" else parse(text)


def _duration(text: str) -> float:
    """Seconds from ``45s``, ``90m``, ``12h``, ``30d``."""
    if text[-1:] not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text} is not a time such as 45s, 90m, 12h or 30d")
    return seconds(text[:-1]) * _UNITS[text[-1]]


def _size(text: str) -> int:
    """Bytes from ``1000000``, ``1000K``, ``50M``, ``1G``: powers of 1000."""
    return positive(text[:-1]) * _SIZES[text[-1]] if text[-1:] in _SIZES else positive(text)
