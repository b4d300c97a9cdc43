"""The command line of a device: ``pocketfed-device run | train | selftest``."""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime import __version__
from device_runtime.errors import InputError, PocketfedError

if TYPE_CHECKING:
    from device_runtime.signature import TrustedKeys

TRUSTED_KEYS = "POCKETFED_TRUSTED_KEYS"
_MOST_THREADS = 1024
_EXIT_CODES = (
    "exit codes: 0 done, 1 a check failed, 2 wrong usage or input, 3 network or server, 4 integrity or authenticity"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, call, print; the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except PocketfedError as error:
        print(f"pocketfed-device: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("pocketfed-device: interrupted", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    from device_runtime.participant import Outcome, Participant, Session
    from device_runtime.server_client import ServerClient
    from device_runtime.transport import RetryPolicy, Transport

    retry = RetryPolicy(attempts=options.attempts, first_wait=options.retry_seconds)
    participant = Participant(
        ServerClient(Transport(options.server, options.timeout, retry)),
        options.population,
        options.client,
        options.data,
        options.cache or _default_cache(),
        options.threads,
        _trusted(options),
    )

    waiting = False

    def tell(session: Session) -> None:
        nonlocal waiting
        was_waiting, waiting = waiting, session.outcome is Outcome.REJECTED
        if session.outcome is Outcome.COMPLETE:
            print("the task is complete", flush=True)
        elif not waiting:
            print(f"round {session.round_number}: {session.outcome.value} ({session.detail})", flush=True)
        elif not was_waiting:  # once for all the rejections in a row
            print(f"waiting for a round ({session.detail})", flush=True)

    if not _is_file(options.data):
        raise InputError(f"{options.data}: no such file; --data names a .npz file with the arrays x and y")
    participant.run(options.rounds, tell)
    return 0


def _train(options: argparse.Namespace) -> int:
    from device_runtime.bundle import WEIGHTS, open_bundle
    from device_runtime.codec import encode, require_codec
    from device_runtime.examples import load_examples
    from device_runtime.trainer import Trainer
    from device_runtime.weights import WeightsFile
    from device_runtime.work import ClientWork

    require_codec(options.codec)
    work = ClientWork(
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.lr,
        proximal=options.proximal,
        seed=options.seed,
        codec=options.codec,
    )
    bundle = open_bundle(options.bundle, _trusted(options))
    manifest = bundle.manifest
    trainer = Trainer(bundle, options.threads)
    examples = load_examples(options.data, manifest)
    with WeightsFile(options.weights or bundle.file(WEIGHTS), manifest.tensors) as weights:
        update = trainer.train(weights, examples, work, options.round)
    del trainer  # the interpreter's memory is not needed beside the update's
    encoded = encode(update, manifest.tensors, manifest.model_id, work.codec, work.seed)
    try:
        options.out.write_bytes(encoded)
    except OSError as error:
        raise InputError(f"{options.out}: can't write the update: {error.strerror}") from None
    print(f"{options.out}: {len(encoded)} bytes, {len(examples)} examples, loss {update.metrics['loss']:.4f}")
    return 0


def _selftest(options: argparse.Namespace) -> int:
    from device_runtime.bundle import open_bundle
    from device_runtime.interpreter import runtime_version
    from device_runtime.selftest import TOLERANCE, self_test

    result = self_test(open_bundle(options.bundle, _trusted(options)), options.threads)
    if options.json:
        report = {
            "ok": result.ok,
            "runtime": runtime_version(),
            "max_rel": result.max_rel if math.isfinite(result.max_rel) else None,  # JSON has no infinity
            "tensor": result.tensor,
            "tolerance": TOLERANCE,
        }
        print(json.dumps(report))
        return 0 if result.ok else 1
    verdict = "passed" if result.ok else "FAILED"
    print(
        f"self-test {verdict} on {runtime_version()}: largest relative difference to Keras {result.max_rel:.1e}"
        f" ({result.tensor}), tolerance {TOLERANCE:.0e}"
    )
    return 0 if result.ok else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pocketfed-device",
        description="Train a pocketfed bundle on this device's own data; only the change of the weights leaves it.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"pocketfed-device {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="take part in the rounds of a server",
        description="Check in at a server, train when accepted, report the update; until the task is complete.",
        epilog=_EXIT_CODES,
    )
    run.set_defaults(command=_run)
    run.add_argument("--server", required=True, metavar="URL", help="the server, such as http://192.0.2.1:8080")
    run.add_argument("--data", required=True, type=Path, metavar="FILE", help="local examples: .npz with x and y")
    run.add_argument("--population", required=True, metavar="NAME", help="the population, by default a model's name")
    run.add_argument("--client", default=socket.gethostname(), metavar="NAME", help="this device's name (%(default)s)")
    run.add_argument("--cache", type=Path, metavar="DIR", help="for bundles (~/.cache/pocketfed-device)")
    run.add_argument("--rounds", type=_positive, metavar="N", help="stop after N accepted reports (no limit)")
    run.add_argument("--timeout", type=_seconds, default=30.0, metavar="S", help="of one request (%(default)s)")
    run.add_argument("--attempts", type=_positive, default=5, metavar="N", help="tries of a request (%(default)s)")
    run.add_argument(
        "--retry-seconds",
        type=_seconds,
        default=1.0,
        metavar="S",
        help="before the 2nd try, then doubled (%(default)s)",
    )
    _threads(run)
    _trusted_keys(run)

    train = commands.add_parser(
        "train",
        help="train offline and write an encoded update",
        description="Train a bundle on local examples without any network, and write the encoded update.",
        epilog=_EXIT_CODES,
    )
    train.set_defaults(command=_train)
    _bundle(train)
    train.add_argument("--data", required=True, type=Path, metavar="FILE", help="local examples: .npz with x and y")
    train.add_argument("--out", required=True, type=Path, metavar="FILE", help="where the encoded update goes")
    train.add_argument("--weights", type=Path, metavar="FILE", help="start from these weights (the bundle's own)")
    train.add_argument("--epochs", type=int, default=1, metavar="E", help="passes over the examples (%(default)s)")
    train.add_argument(
        "--batch-size", type=_batch_size, default=10, metavar="B", help="examples a step, or 'all' (%(default)s)"
    )
    train.add_argument("--lr", type=float, default=0.1, metavar="RATE", help="learning rate (%(default)s)")
    train.add_argument("--proximal", type=float, default=0.0, metavar="MU", help="FedProx's term (%(default)s)")
    train.add_argument("--seed", type=int, default=0, metavar="N", help="of order and rounding (%(default)s)")
    train.add_argument("--round", type=_positive, default=1, metavar="N", help="round it is for (%(default)s)")
    train.add_argument("--codec", default="f32", metavar="NAME", help="f32 or q8 (%(default)s)")
    _threads(train)
    _trusted_keys(train)

    selftest = commands.add_parser(
        "selftest",
        help="verify a bundle and test it on this device",
        description="Verify a bundle's hashes, then run its golden steps here and compare with what Keras computed.",
        epilog=_EXIT_CODES,
    )
    selftest.set_defaults(command=_selftest)
    _bundle(selftest)
    selftest.add_argument("--json", action="store_true", help="print one JSON object")
    _threads(selftest)
    _trusted_keys(selftest)
    return parser


def _bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle, or the folder that holds exactly one")


def _threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads", type=_threads_count, default=1, metavar="N", help="of the interpreter (%(default)s)"
    )


def _trusted_keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trusted-key",
        type=Path,
        action="append",
        metavar="FILE",
        help="take only bundles signed with this key or another one that is named so; without any, the keys of the"
        f" environment variable {TRUSTED_KEYS}, as FILE{os.pathsep}FILE",
    )


def _trusted(options: argparse.Namespace) -> TrustedKeys | None:
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


def _default_cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocketfed-device"
    except RuntimeError:
        raise InputError("this user has no home folder; name a folder for bundles with --cache") from None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no name of a file
        return False


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def _threads_count(text: str) -> int:
    count = _positive(text)
    if count > _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text} is more than {_MOST_THREADS}")
    return count


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return value


def _batch_size(text: str) -> int | None:
    return None if text == "all" else _positive(text)


if __name__ == "__main__":
    sys.exit(main())
