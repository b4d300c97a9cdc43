"""``pocketfed-device train``: train offline and write an encoded update."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.commands.options import (
    EXIT_CODES,
    add_bundle,
    add_limits,
    add_log_json,
    add_saving,
    add_threads,
    add_trusted_keys,
    batch_size,
    positive,
    trusted,
)
from device_runtime.errors import InputError

if TYPE_CHECKING:
    from device_runtime.commands.options import Subparsers


def add(commands: Subparsers) -> None:
    """Add the command's parser."""
    train = commands.add_parser(
        "train",
        help="train offline and write an encoded update",
        description="Train a bundle on local examples without any network, and write the encoded update. Its progress"
        " is kept beside that: the same command goes on after whatever ended it.",
        epilog=EXIT_CODES,
    )
    train.set_defaults(command=_train)
    add_bundle(train)
    train.add_argument(
        "--data", required=True, type=Path, metavar="FILE", help="local examples: .npz with x and y, or a local store"
    )
    train.add_argument("--out", required=True, type=Path, metavar="FILE", help="where the encoded update goes")
    train.add_argument("--weights", type=Path, metavar="FILE", help="start from these weights (the bundle's own)")
    train.add_argument("--epochs", type=int, default=1, metavar="E", help="passes over the examples (%(default)s)")
    train.add_argument(
        "--batch-size", type=batch_size, default=10, metavar="B", help="examples a step, or 'all' (%(default)s)"
    )
    train.add_argument("--lr", type=float, default=0.1, metavar="RATE", help="learning rate (%(default)s)")
    train.add_argument("--proximal", type=float, default=0.0, metavar="MU", help="FedProx's term (%(default)s)")
    train.add_argument("--seed", type=int, default=0, metavar="N", help="of order and rounding (%(default)s)")
    train.add_argument("--round", type=positive, default=1, metavar="N", help="round it is for (%(default)s)")
    train.add_argument("--codec", default="f32", metavar="NAME", help="f32, f16, q8, q4, q2 or q1 (%(default)s)")
    add_saving(train)
    add_limits(train)
    add_log_json(train)
    add_threads(train)
    add_trusted_keys(train)


def _train(options: argparse.Namespace) -> int:
    from device_runtime.bundle import WEIGHTS, open_bundle
    from device_runtime.codec import require_codec
    from device_runtime.events import Events
    from device_runtime.examples import load_examples
    from device_runtime.files import file_sha256
    from device_runtime.limits import Limits, cap_memory, over_memory, release_memory, require_memory
    from device_runtime.progress import Position, Progress, SavePolicy
    from device_runtime.report import encoded_report
    from device_runtime.trainer import StoppedError, Trainer
    from device_runtime.weights import WeightsFile
    from device_runtime.work import ClientWork

    events = Events(options.log_json)
    require_codec(options.codec)
    work = ClientWork(
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.lr,
        proximal=options.proximal,
        seed=options.seed,
        codec=options.codec,
    )
    bundle = open_bundle(options.bundle, trusted(options))
    manifest = bundle.manifest
    examples = load_examples(options.data, manifest)
    limits = Limits(options.max_memory, options.max_seconds)
    require_memory(limits, manifest, work, len(examples))
    cap_memory(limits)

    def stop(position: Position) -> str | None:
        if over_memory(limits):
            raise InputError("the training took more memory than --max-memory allows; name more, or a smaller batch")
        return "time" if limits.seconds is not None and position.seconds > limits.seconds else None

    weights_file = options.weights or bundle.file(WEIGHTS)
    with WeightsFile(weights_file, manifest.tensors) as weights:
        trainer = Trainer(bundle, options.threads)
        task = {
            "bundle": bundle.identity,
            "weights": file_sha256(weights_file),
            "work": work.to_json(),
            "round": options.round,
            "examples": examples.identity,
        }
        policy = SavePolicy(options.save_every, options.save_seconds)
        beside = options.out.with_name(f"{options.out.name}.progress")
        progress = Progress(beside, task, trainer.variable_sizes, policy, notice=events.tell)
        try:
            trained = trainer.train(weights, examples, work, options.round, stop, progress)
        except StoppedError as stopped:
            raise InputError(
                f"the training took longer than --max-seconds allows, {limits.seconds:g};"
                f" the same command with more of them goes on after step {stopped.position.steps}"
            ) from None
        del trainer  # the interpreter's memory is not needed beside the update's
        release_memory()
        encoded = encoded_report(trained, manifest, work)
    try:
        options.out.write_bytes(encoded)
    except OSError as error:
        raise InputError(f"{options.out}: can't write the update: {error.strerror}") from None
    progress.discard()
    loss = trained.metrics["loss"]
    text = f"{options.out}: {len(encoded)} bytes, {len(examples)} examples, loss {loss:.4f}"
    events.tell("trained", text, file=str(options.out), bytes=len(encoded), examples=len(examples), loss=loss)
    return 0
