"""LEAF's JSON (Caldas et al. 2018): folders ``train`` and ``test`` of files with `users`, `num_samples`, `user_data`.

A user is a client. Features are numbers (FEMNIST's 784 become an image) or text (Shakespeare's 80 characters, whose
label is the next one).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.examples import Examples
from device_runtime.tensors import is_finite
from tff_sim.datasets.characters import symbols
from tff_sim.datasets.dataset import Dataset, joined, owned, require_alike
from tff_sim.datasets.files import files_in, read_file, require_folder
from tff_sim.errors import DatasetError

_HOLDS = "LEAF's folders train and test of .json files"
_EXPECTED = "an object with 'users', 'num_samples' and 'user_data'"
_SQUARES = {784: (28, 28, 1)}  # FEMNIST


def load(data_dir: Path) -> Dataset:
    """The users of ``train`` as clients, and all of ``test`` to test with.

    Args:
        data_dir: folder with ``train`` and ``test``. Features of d numbers become float32 [n, d], those of 784
            [n, 28, 28, 1], with labels int32 [n]. Text of t bytes becomes int32 [n, t], with the next characters,
            int32 [n, t], as labels. All users have the same, numbers or text, and as many of them.

    Raises:
        DatasetError: a file is missing, damaged or not what it should be.
    """
    require_folder(data_dir, _HOLDS)
    train, test = list(_users(data_dir / "train")), list(_users(data_dir / "test"))
    first = train[0]
    for user in (*train, *test):
        require_alike(user.where, user.examples, f"of user {first.name[:40]!r}", first.examples, "users")
    return owned("leaf", {user.name: user.examples for user in train}, joined(user.examples for user in test))


@dataclass(frozen=True)
class _User:
    path: Path
    name: str
    examples: Examples

    @property
    def where(self) -> str:
        return _where(self.path, self.name)


def _where(path: Path, user: object) -> str:
    return f"{path}: user {str(user)[:40]!r}"


def _users(folder: Path) -> Iterator[_User]:
    known: set[str] = set()
    for path in files_in(folder, ".json", _HOLDS):
        for user in _file(path):
            if user.name in known:
                raise DatasetError(f"{user.where} stands there a second time; expected each user once")
            known.add(user.name)
            yield user
    if not known:
        raise DatasetError(f"{folder}: no user in it has an example; --data-dir should hold {_HOLDS}")


def _file(path: Path) -> Iterator[_User]:
    try:
        content = json.loads(read_file(path, _EXPECTED))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: truncated or not JSON ({str(error)[:60]}); expected {_EXPECTED}") from None
    match content:
        case {"users": list(users), "num_samples": list(counts), "user_data": dict(data)}:
            pass
        case _:
            raise DatasetError(f"{path}: a field is missing or of another type; expected {_EXPECTED}")
    if len(users) != len(counts):
        raise DatasetError(f"{path}: {len(users)} users and {len(counts)} num_samples; expected as many of both")
    for user, count in zip(users, counts, strict=True):
        where = _where(path, user)
        match data.get(user) if isinstance(user, str) else None:
            case {"x": list(x), "y": list(y)}:
                pass
            case _:
                raise DatasetError(f"{where}: not in user_data with the lists 'x' and 'y'; expected {_EXPECTED}")
        if not len(x) == len(y) == count:
            said = count if type(count) is int and count < 2**63 else "something else"
            raise DatasetError(f"{where}: {len(x)} x, {len(y)} y and num_samples {said}; expected as many of each")
        if x:
            yield _User(path, user, _examples(x, y, where))


def _examples(x: list[Any], y: list[Any], where: str) -> Examples:
    if all(isinstance(value, str) for value in (*x, *y)):
        return _text(x, y, where)
    features, labels = _array(x), _array(y)
    if features is None or features.ndim != 2 or not features.size or not np.isfinite(features).all():
        raise DatasetError(f"{where}: 'x' is neither text nor rows of as many finite numbers; expected one of them")
    if labels is None or labels.ndim != 1 or (labels != np.floor(labels)).any() or not _is_int32(labels):
        raise DatasetError(f"{where}: 'y' is not whole numbers from 0 on; expected one for each x")
    shape = _SQUARES.get(features.shape[1], features.shape[1:])
    with np.errstate(over="ignore"):
        x32 = features.astype(np.float32)
    if not is_finite(x32):
        raise DatasetError(f"{where}: 'x' holds a number that float32 has not; expected at most 3.4e38 either way")
    return Examples(x32.reshape(-1, *shape), labels.astype(np.int32))


def _array(values: list[Any]) -> npt.NDArray[np.float64] | None:
    try:
        found = np.array(values)
    except (ValueError, OverflowError):  # rows of different lengths, a whole number that float64 has not
        return None
    return found.astype(np.float64) if found.dtype.kind in "iuf" else None


def _is_int32(values: npt.NDArray[np.float64]) -> bool:
    return bool((values >= 0).all() and (values < 2**31).all())


def _text(x: list[str], y: list[str], where: str) -> Examples:
    """Each text and the one shifted by its label: the model gives a character at each step, not at the last alone."""
    try:
        texts = [symbols(text + following) for text, following in zip(x, y, strict=True)]
    except UnicodeEncodeError as error:  # JSON may escape half a character
        half = f"U+{ord(error.object[error.start]):04X}"
        raise DatasetError(f"{where}: a text holds {half}, half a surrogate pair; expected whole characters") from None
    if any(len(first) != len(second) for first, second in pairwise(texts)):
        raise DatasetError(f"{where}: texts of different lengths; expected as many bytes of UTF-8 in each, and a label")
    if not all(x):
        raise DatasetError(f"{where}: a text is empty; expected at least one character in each")
    if any(len(label.encode()) != 1 for label in y):
        raise DatasetError(f"{where}: a label is not one character; expected the one after the text")
    together = np.stack(texts)
    return Examples(together[:, :-1].copy(), together[:, 1:].copy())
