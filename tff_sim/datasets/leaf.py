"""LEAF's JSON (Caldas et al. 2018): folders ``train`` and ``test`` of files with `users`, `num_samples`, `user_data`.

A user is a client. Features are numbers (FEMNIST's 784 become an image) or text (Shakespeare's 80 characters, whose
label is the next one).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.examples import Examples
from tff_sim.datasets.characters import symbols
from tff_sim.datasets.dataset import Dataset, joined, owned
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
            int32 [n, t], as labels; each text is as long as the others.

    Raises:
        DatasetError: a file is missing, damaged or not what it should be.
    """
    require_folder(data_dir, _HOLDS)
    train = dict(_users(data_dir / "train"))
    test = [examples for _, examples in _users(data_dir / "test")]
    for part in (*train.values(), *test):
        shape = next(iter(train.values())).x.shape[1:]
        if part.x.shape[1:] != shape:
            raise DatasetError(
                f"{data_dir}: users have features of {shape} and of {part.x.shape[1:]}; expected one shape"
            )
    return owned("leaf", train, joined(test))


def _users(folder: Path) -> Iterator[tuple[str, Examples]]:
    known: set[str] = set()
    for path in files_in(folder, ".json", _HOLDS):
        for name, examples in _file(path):
            if name in known:
                raise DatasetError(f"{path}: user {name!r} stands there a second time; expected each user once")
            known.add(name)
            yield name, examples
    if not known:
        raise DatasetError(f"{folder}: no user in it has an example; --data-dir should hold {_HOLDS}")


def _file(path: Path) -> Iterator[tuple[str, Examples]]:
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
        where = f"{path}: user {str(user)[:40]!r}"
        match data.get(user) if isinstance(user, str) else None:
            case {"x": list(x), "y": list(y)}:
                pass
            case _:
                raise DatasetError(f"{where}: not in user_data with the lists 'x' and 'y'; expected {_EXPECTED}")
        if not len(x) == len(y) == count:
            raise DatasetError(f"{where}: {len(x)} x, {len(y)} y and num_samples {count}; expected as many of each")
        if x:
            yield user, _examples(x, y, where)


def _examples(x: list[Any], y: list[Any], where: str) -> Examples:
    if all(isinstance(value, str) for value in (*x, *y)):
        return _text(x, y, where)
    features, labels = _array(x), _array(y)
    if features is None or features.ndim != 2 or not np.isfinite(features).all():
        raise DatasetError(f"{where}: 'x' is neither text nor rows of as many finite numbers; expected one of them")
    if labels is None or labels.ndim != 1 or (labels != np.floor(labels)).any() or not _is_int32(labels):
        raise DatasetError(f"{where}: 'y' is not whole numbers from 0 on; expected one for each x")
    shape = _SQUARES.get(features.shape[1], features.shape[1:])
    return Examples(features.astype(np.float32).reshape(-1, *shape), labels.astype(np.int32))


def _array(values: list[Any]) -> npt.NDArray[np.float64] | None:
    try:
        found = np.array(values)
    except ValueError:  # rows of different lengths
        return None
    return found.astype(np.float64) if found.dtype.kind in "iuf" else None


def _is_int32(values: npt.NDArray[np.float64]) -> bool:
    return bool((values >= 0).all() and (values < 2**31).all())


def _text(x: list[str], y: list[str], where: str) -> Examples:
    """Each text and the one shifted by its label: the model gives a character at each step, not at the last alone."""
    texts = [symbols(text + following) for text, following in zip(x, y, strict=True)]
    if any(len(first) != len(second) for first, second in pairwise(texts)):
        raise DatasetError(f"{where}: texts of different lengths; expected as many bytes of UTF-8 in each, and a label")
    if len(symbols(y[0])) != 1 or len(texts[0]) < 2 or any(len(symbols(label)) != 1 for label in y):
        raise DatasetError(f"{where}: a label is not one character; expected the one after the text")
    together = np.stack(texts)
    return Examples(together[:, :-1].copy(), together[:, 1:].copy())
