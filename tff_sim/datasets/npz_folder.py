"""A folder of ``.npz`` files, one a client, as devices read them: arrays ``x`` and ``y``, the file's name the client's.

To test with: arrays ``x_test`` and ``y_test`` in some of the files, or a file ``_test.npz`` with ``x`` and ``y``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

from device_runtime.examples import Examples, read_npz
from device_runtime.tensors import DTYPES, describe, is_finite
from tff_sim.datasets.dataset import Dataset, joined, owned, require_alike
from tff_sim.datasets.files import files_in
from tff_sim.errors import DatasetError

TEST_FILE = "_test.npz"
_HOLDS = f"a .npz file for each client, with arrays x and y, and {TEST_FILE} or arrays x_test and y_test"

Fields = dict[str, npt.NDArray[Any]]


def load(data_dir: Path) -> Dataset:
    """Clients named as their files; types as the files have them, float32 or int32, the same in all.

    Args:
        data_dir: the folder.

    Raises:
        DatasetError, InputError: a file is damaged, has other types or shapes than the first one, or there are no
            examples to test with.
    """
    clients: dict[str, Examples] = {}
    tests: list[Examples] = []
    first: tuple[Path, Examples] | None = None
    for path in files_in(data_dir, ".npz", _HOLDS):
        fields = read_npz(path)
        parts = [(path.name != TEST_FILE, _examples(path, fields, "x", "y"))]
        if "x_test" in fields or "y_test" in fields:
            parts.append((False, _examples(path, fields, "x_test", "y_test")))
        for trains, part in parts:
            first = first or (path, part)
            require_alike(str(path), part, f"in {first[0].name}", first[1], "files")
            if trains:
                clients[path.stem] = part
            else:
                tests.append(part)
    if not clients or not tests:
        raise DatasetError(f"{data_dir}: no examples to {'test' if clients else 'train'} with; it should hold {_HOLDS}")
    return owned("npz", clients, joined(tests))


def _examples(path: Path, fields: Fields, x_name: str, y_name: str) -> Examples:
    for name in (x_name, y_name):
        if name not in fields:
            raise DatasetError(f"{path}: array {name!r} is missing; expected {x_name} and {y_name}")
        if str(fields[name].dtype) not in DTYPES or fields[name].ndim == 0:
            raise DatasetError(
                f"{path}: array {name!r} is {describe(fields[name])}; expected {' or '.join(DTYPES)} [n, …]"
            )
    x, y = fields[x_name], fields[y_name]
    if len(x) != len(y) or len(x) == 0:
        raise DatasetError(
            f"{path}: {len(x)} rows of {x_name} and {len(y)} of {y_name}; expected as many, at least one"
        )
    for name in (x_name, y_name):
        if not is_finite(fields[name]):
            raise DatasetError(f"{path}: array {name!r} holds values that are not finite; leave those examples out")
    return Examples(x, y)
