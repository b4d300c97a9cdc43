"""Options that several commands of the device have, and how their values are read."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.errors import InputError

if TYPE_CHECKING:
    from device_runtime.signature import TrustedKeys

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

TRUSTED_KEYS = "POCKETFED_TRUSTED_KEYS"
EXIT_CODES = (
    "exit codes: 0 done, 1 a check failed, 2 wrong usage or input, 3 network or server, 4 integrity or authenticity,"
    " 5 turned away by the server"
)
_MOST_THREADS = 1024


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """The positional argument ``bundle``."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle, or the folder that holds exactly one")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """``--threads``."""
    parser.add_argument(
        "--threads", type=_threads_count, default=1, metavar="N", help="of the interpreter (%(default)s)"
    )


def add_log_json(parser: argparse.ArgumentParser) -> None:
    """``--log-json``, for `device_runtime.events.Events`."""
    parser.add_argument("--log-json", action="store_true", help="one JSON object a line instead of text, an event each")


def add_limits(parser: argparse.ArgumentParser) -> None:
    """``--max-memory`` and ``--max-seconds``, for `device_runtime.limits`."""
    parser.add_argument(
        "--max-memory", type=megabytes, metavar="MB", help="refuse a bundle that needs more, and never take more"
    )
    parser.add_argument("--max-seconds", type=seconds, metavar="S", help="give up a training that takes longer")


def add_saving(parser: argparse.ArgumentParser) -> None:
    """``--save-every`` and ``--save-seconds``, for `device_runtime.progress.SavePolicy`."""
    parser.add_argument(
        "--save-every",
        type=positive,
        default=20,
        metavar="N",
        help="steps of training between two saves of its progress, at least (%(default)s)",
    )
    parser.add_argument(
        "--save-seconds", type=seconds, default=30.0, metavar="S", help="seconds between them, at least (%(default)s)"
    )


def add_trusted_keys(parser: argparse.ArgumentParser) -> None:
    """``--trusted-key``, for `trusted`."""
    parser.add_argument(
        "--trusted-key",
        type=Path,
        action="append",
        metavar="FILE",
        help="take only bundles signed with this key or another one that is named so; without any, the keys of the"
        f" environment variable {TRUSTED_KEYS}, as FILE{os.pathsep}FILE",
    )


def add_root(parser: argparse.ArgumentParser) -> None:
    """``--root``, for `root`."""
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="the installation folder (~/.local/share/pocketfed-device)"
    )


def root(options: argparse.Namespace) -> Path:
    """The folder that ``--root`` names, or else this user's.

    Raises:
        InputError: neither is there.
    """
    if options.root is not None:
        return Path(options.root)
    try:
        return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "pocketfed-device"
    except RuntimeError:
        raise InputError("this user has no home folder; name a folder for what is installed with --root") from None


def trusted(options: argparse.Namespace) -> TrustedKeys | None:
    """The keys of the options or else of the environment variable; None where neither names any."""
    files: list[Path] | None = options.trusted_key
    if files is None:
        variable = os.environ.get(TRUSTED_KEYS)
        if variable is None:
            return None
        names = variable.split(os.pathsep)
        if "" in names:  # a variable that lost its value must not open the device to everybody
            raise InputError(
                f"{TRUSTED_KEYS}: expected FILE or FILE{os.pathsep}FILE, not {variable!r}; unset it to trust any bundle"
            )
        files = [Path(name) for name in names]

    from device_runtime.keys import read_public_key
    from device_runtime.signature import TrustedKeys

    return TrustedKeys(map(read_public_key, files))


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def _threads_count(text: str) -> int:
    count = positive(text)
    if count > _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text} is more than {_MOST_THREADS}")
    return count


def seconds(text: str) -> float:
    """A number of seconds above 0."""
    return above_zero(text, "a number of seconds")


def megabytes(text: str) -> int:
    """Bytes, from a number of megabytes above 0."""
    return int(above_zero(text, "a number of megabytes") * 1e6)


def above_zero(text: str, what: str, below: float = math.inf) -> float:
    """A number above 0 and below another."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < below:
        raise argparse.ArgumentTypeError(f"{text} is not {what} above 0")
    return value


def batch_size(text: str) -> int | None:
    """A batch size of `ClientWork`; None stands for all examples."""
    return None if text == "all" else positive(text)
