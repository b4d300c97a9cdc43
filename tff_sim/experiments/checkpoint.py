"""The checkpoint of a run: all that its next round follows from, in one file that is whole at any instant.

A zip file of .npy arrays, without pickle: the server's state, leaf by leaf, and ``about.json`` with the experiment, the
number of the round, and the rows of metrics.csv so far.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from device_runtime.errors import InputError
from device_runtime.files import replace_whole
from tff_sim.experiments.results import RoundMetrics

FILE = "checkpoint.zip"
_FORMAT = 1
_ABOUT = "about.json"
# A bit may turn over anywhere, also where the archive says how a file is compressed, or that it is encrypted.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, RuntimeError),
    *(OSError, ValueError, LookupError, TypeError, AttributeError),
)


@dataclass(frozen=True)
class Checkpoint:
    """A run after a round.

    Attributes:
        experiment: tables of the experiment, as `tff_sim.experiments.file.experiment_tables` gives them.
        round: the last one that ended.
        initial_accuracy: of the weights before round 1.
        rows: what each round measured.
        leaves: the arrays of the server's state, flattened.
        data: `tff_sim.federated_data.FederatedData.identity`; None where it was not written down.
    """

    experiment: dict[str, Any]
    round: int
    initial_accuracy: float
    rows: Sequence[RoundMetrics]
    leaves: Sequence[Any]
    data: str | None = None


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Put it in the place of the one before, at once or not at all.

    Raises:
        InputError: it can't be written; the one before stands.
    """
    about = {
        "format": _FORMAT,
        "experiment": checkpoint.experiment,
        "round": checkpoint.round,
        "initial_accuracy": checkpoint.initial_accuracy,
        "rows": [row.cells() for row in checkpoint.rows],
        "leaves": len(checkpoint.leaves),
        "data": checkpoint.data,
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(_ABOUT, json.dumps(about, separators=(",", ":")))
        for index, leaf in enumerate(checkpoint.leaves):
            with archive.open(f"{index}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(leaf), allow_pickle=False)  # type: ignore[no-untyped-call]
    try:
        replace_whole(path, [content.getbuffer()])
    except OSError as error:
        raise InputError(f"{path}: can't write it: {error.strerror}; make room there, or change --out") from None


def read_checkpoint(path: Path) -> Checkpoint:
    """What `write_checkpoint` wrote; every array's checksum is compared.

    Raises:
        InputError: it can't be read, is damaged, or of another version of this program.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: can't read it: {error.strerror}") from None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            about = json.loads(archive.read(_ABOUT))
            if about["format"] != _FORMAT:
                raise InputError(
                    f"{path}: a checkpoint of format {about['format']}, of another version of pocketfed; this one reads"
                    f" {_FORMAT}: remove it to begin anew"
                )
            leaves = [
                np.load(io.BytesIO(archive.read(f"{index}.npy")), allow_pickle=False)
                for index in range(about["leaves"])
            ]
        checkpoint = _checkpoint(about, leaves)
    except _DAMAGE as error:
        raise InputError(f"{path}: a damaged checkpoint ({error}): remove it to begin anew") from None
    return checkpoint


def _checkpoint(about: dict[str, Any], leaves: Sequence[Any]) -> Checkpoint:
    """One of `_DAMAGE` where what is written down does not hold together."""
    rows = [RoundMetrics.of_cells(row) for row in about["rows"]]
    if not rows or [row.round for row in rows] != list(range(1, about["round"] + 1)):
        raise ValueError("not a row for each round")
    if not all(isinstance(cell, int | float) for row in rows for cell in row.cells()):
        raise ValueError("a row has other than numbers")
    if not isinstance(about["experiment"], dict) or not isinstance(about["experiment"].get("rounds"), int):
        raise ValueError("no experiment")
    data = about.get("data")  # earlier checkpoints have none
    return Checkpoint(about["experiment"], len(rows), float(about["initial_accuracy"]), rows, leaves, data)


def flatten_state(state: Any) -> list[Any]:
    """The arrays of an engine's state."""
    import tensorflow as tf

    leaves: list[Any] = tf.nest.flatten(state)
    return leaves


def restore_state(like: Any, leaves: Sequence[Any], path: Path) -> Any:
    """The state with these arrays.

    Args:
        like: a state of the same engine, for its structure.
        leaves: as `flatten_state` gives them.
        path: the checkpoint's, for messages.

    Raises:
        InputError: they are not of such a state.
    """
    import tensorflow as tf

    expected = flatten_state(like)
    same = len(expected) == len(leaves) and all(
        np.shape(one) == np.shape(other) and np.asarray(one).dtype == np.asarray(other).dtype
        for one, other in zip(expected, leaves, strict=True)
    )
    if not same:
        raise InputError(f"{path}: its state is not that of this experiment's algorithm: remove it to begin anew")
    return tf.nest.pack_sequence_as(like, [leaf[()] for leaf in leaves])
