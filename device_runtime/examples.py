"""A client's local examples, typed by the manifest: of a ``.npz`` file with ``x`` and ``y``, or of a local store."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.bundle import Manifest
from device_runtime.errors import InputError, IntegrityError
from device_runtime.tensors import TensorSpec, describe, identity_of, is_finite

SPARSE_LOSS = "sparse_categorical_crossentropy"
_SQLITE = b"SQLite format 3\0"


class NoExamplesError(InputError):
    """A local store without examples, which an app may add at any time."""


@dataclass(frozen=True)
class Examples:
    """Features [n, …] and labels [n, …] as the train signature's inputs ``x`` and ``y`` want them.

    Attributes:
        x, y: the arrays.
        last: id of the last example where they come from a local store, for `load_examples(…, through=last)`.
    """

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    last: int | None = None

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def identity(self) -> str:
        """SHA-256, in hexadecimal, of types, values and order: equal for the same examples and for no others."""
        return identity_of(self.x, self.y)


@dataclass(frozen=True)
class ExampleTypes:
    """What a model's examples are: specs of ``x`` and ``y`` with a free first dimension.

    Attributes:
        x, y: the specs.
        classes: labels are from 0 to one below; None where they are free.
    """

    x: TensorSpec
    y: TensorSpec
    classes: int | None

    @classmethod
    def of(cls, manifest: Manifest) -> ExampleTypes:
        """The types that a manifest's train signature takes."""
        x, y = manifest.examples
        sparse = manifest.loss == SPARSE_LOSS
        return cls(x, y, manifest.signatures["infer"].outputs[0].shape[-1] if sparse else None)

    def check(self, fields: Mapping[str, npt.NDArray[Any]], where: str, last: int | None = None) -> Examples:
        """`fields["x"]` and `fields["y"]` as `Examples`, if they are of these types; else `InputError`."""
        for spec in (self.x, self.y):
            if spec.name not in fields:
                raise InputError(f"{where}: array {spec.name!r} is missing; expected {spec}")
            if not spec.accepts(fields[spec.name]):
                raise InputError(f"{where}: array {spec.name!r} is {describe(fields[spec.name])}; expected {spec}")
        x, y = fields["x"], fields["y"]
        if len(x) != len(y) or len(x) == 0:
            raise InputError(f"{where}: {len(x)} rows of x and {len(y)} of y; expected as many of both, at least one")
        for name, values in (("x", x), ("y", y)):
            if not is_finite(values):
                raise InputError(f"{where}: array {name!r} holds values that are not finite")
        if self.classes is not None and not (y.min() >= 0 and y.max() < self.classes):
            raise InputError(
                f"{where}: array 'y' holds labels from {y.min()} to {y.max()}; expected 0 to {self.classes - 1}"
            )
        return Examples(x, y, last)

    def to_json(self) -> dict[str, Any]:
        return {"x": self.x.to_json(), "y": self.y.to_json(), "classes": self.classes}

    @classmethod
    def from_json(cls, value: Any, where: str) -> ExampleTypes:
        """Read what `to_json` wrote; `IntegrityError` where it is something else."""
        if not isinstance(value, dict) or not isinstance(value.get("classes"), int | None):
            raise IntegrityError(f"{where}: expected an object with x, y and classes")
        x, y = (TensorSpec.from_json(value.get(name), f"{where}.{name}") for name in ("x", "y"))
        return cls(x, y, value["classes"])

    def __str__(self) -> str:
        labels = "" if self.classes is None else f" from 0 to {self.classes - 1}"
        return f"x {self.x} and y {self.y}{labels}"


def load_examples(path: Path, manifest: Manifest, through: int | None = None) -> Examples:
    """Read and check local examples: of a ``.npz`` file or of a local store, whichever the file is.

    Args:
        path: the file.
        manifest: what they have to fit.
        through: of a store, only the examples up to this id: those of an earlier snapshot, but for what was deleted.

    Raises:
        NoExamplesError: the store holds none of them.
        InputError: the file can't be read, or an array is missing, empty, or of another dtype, shape or
            range than the manifest's train signature takes.
        IntegrityError: the store is damaged.
    """
    if not _is_store(path):
        return check_examples(read_npz(path), manifest, str(path))

    from device_runtime.local_store import LocalStore  # SQLite is loaded only where there is a store

    with LocalStore(path) as store:
        with suppress(InputError):  # of a reader, or a full disk: the snapshot leaves out what is too old in any case
            store.expire()
        return store.snapshot(manifest, through)


def has_examples(path: Path) -> bool:
    """Whether there are any, without reading them; a ``.npz`` file counts as having some.

    Raises:
        InputError: the file can't be read, or another process has the store locked.
        IntegrityError: the store is damaged.
    """
    if not _is_store(path):
        return True

    from device_runtime.local_store import LocalStore

    with LocalStore(path) as store:
        if store.count():
            return True
        with suppress(InputError):  # as above
            store.expire()
        return False


def read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """All arrays of a ``.npz`` file; `InputError` where it is none."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except OSError as error:
        raise _unreadable(path, error) from None
    except Exception:  # numpy, zipfile, zlib and tokenize have a dozen kinds between them for a damaged file
        raise InputError(f"{path}: not a .npz file with the arrays x and y (numpy.savez writes one)") from None


def check_examples(fields: dict[str, npt.NDArray[Any]], manifest: Manifest, where: str) -> Examples:
    """`fields["x"]` and `fields["y"]` as `Examples`, if they fit the manifest; else `InputError`."""
    return ExampleTypes.of(manifest).check(fields, where)


def _is_store(path: Path) -> bool:
    # Where a journal lies beside, some connection may be open, perhaps in this very process. To open and close the file
    # here would then give up SQLite's locks on it (a rule of POSIX), and they guard it against corruption.
    try:
        if Path(f"{path}-wal").exists():
            return True
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: can't read the examples: {error.strerror or error}")
