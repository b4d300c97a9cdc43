"""A client's local examples: a ``.npz`` file with the arrays ``x`` and ``y``, typed by the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.bundle import Manifest
from device_runtime.errors import InputError
from device_runtime.tensors import describe

SPARSE_LOSS = "sparse_categorical_crossentropy"


@dataclass(frozen=True)
class Examples:
    """Features [n, …] and labels [n, …] as the train signature's inputs ``x`` and ``y`` want them."""

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.x)


def load_examples(path: Path, manifest: Manifest) -> Examples:
    """Read and check local examples.

    Raises:
        InputError: the file can't be read, or an array is missing, empty, or of another dtype, shape or
            range than the manifest's train signature takes.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            fields = {name: np.asarray(arrays[name]) for name in arrays.files}
    except OSError as error:
        raise InputError(f"{path}: can't read the examples: {error.strerror or error}") from None
    except Exception:  # numpy, zipfile, zlib and tokenize have a dozen kinds between them for a damaged file
        raise InputError(f"{path}: not a .npz file with the arrays x and y (numpy.savez writes one)") from None
    return check_examples(fields, manifest, str(path))


def check_examples(fields: dict[str, npt.NDArray[Any]], manifest: Manifest, where: str) -> Examples:
    """`fields["x"]` and `fields["y"]` as `Examples`, if they fit the manifest; else `InputError`."""
    for spec in manifest.examples:
        if spec.name not in fields:
            raise InputError(f"{where}: array {spec.name!r} is missing; expected {spec}")
        if not spec.accepts(fields[spec.name]):
            raise InputError(f"{where}: array {spec.name!r} is {describe(fields[spec.name])}; expected {spec}")
    x, y = fields["x"], fields["y"]
    if len(x) != len(y) or len(x) == 0:
        raise InputError(f"{where}: {len(x)} rows of x and {len(y)} of y; expected as many of both, at least one")
    if not np.isfinite(x).all():
        raise InputError(f"{where}: array 'x' holds values that are not finite")
    if manifest.loss == SPARSE_LOSS:
        classes = manifest.signatures["infer"].outputs[0].shape[-1]
        if classes is not None and not (y.min() >= 0 and y.max() < classes):
            raise InputError(
                f"{where}: array 'y' holds labels from {y.min()} to {y.max()}; expected 0 to {classes - 1}"
            )
    return Examples(x, y)
