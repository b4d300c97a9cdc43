"""A partition in a file, so that experiments and devices share one: ``.npz`` without pickles.

It holds the numbers of the examples and not the examples, and the SHA-256 of the data set that they number.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.errors import InputError
from device_runtime.examples import read_npz
from tff_sim.client_names import ListedNames
from tff_sim.datasets import Dataset
from tff_sim.partition.dealt import Partition
from tff_sim.partition.schemes import scheme_from_json

_FORMAT = 1
_EXPECTED = "a partition that 'pocketfed data partition' wrote"


def save_partition(partition: Partition, path: Path) -> None:
    """Write it, over a file that is there.

    Raises:
        InputError: it can't be written.
    """
    header = json.dumps({"format": _FORMAT, **partition.to_json()}, sort_keys=True).encode()
    content = io.BytesIO()
    np.savez_compressed(
        content,
        header=np.frombuffer(header, np.uint8),
        names=partition.names.array(),
        indices=partition.indices,
        offsets=partition.offsets,
    )
    beside = path.with_name(f"{path.name}.new")
    try:
        beside.write_bytes(content.getvalue())
        beside.replace(path)
    except OSError as error:
        raise InputError(f"{path}: can't write it: {error.strerror}; choose another file") from None


def load_partition(path: Path, dataset: Dataset) -> Partition:
    """Read what `save_partition` wrote of this data set.

    Raises:
        InputError: the file can't be read, is damaged or no partition, or is one of another data set.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected {_EXPECTED}")
    try:
        fields = read_npz(path)
    except InputError:
        raise InputError(f"{path}: it can't be read, or is damaged; expected {_EXPECTED}") from None
    header = _header(path, fields)
    names, indices, offsets = _arrays(path, fields)
    if header.get("identity") != dataset.train.identity:
        raise InputError(
            f"{path}: a partition of other examples (data set {str(header.get('dataset'))[:40]!r}) than those of"
            f" {dataset.name!r} here: their SHA-256 differs; make one with 'pocketfed data partition'"
        )
    listed = ListedNames(names)
    if len(indices) and not 0 <= indices.min() <= indices.max() < len(dataset.train):
        raise InputError(f"{path}: it numbers examples that the data set does not have; expected {_EXPECTED}")
    if len(np.unique(indices)) != len(indices):
        raise InputError(f"{path}: it deals an example twice; expected {_EXPECTED}")
    if (fault := listed.fault()) is not None:
        raise InputError(f"{path}: {fault}; expected {_EXPECTED}")
    return Partition(
        scheme=scheme_from_json(header.get("scheme"), f"{path}: scheme"),
        seed=int(header["seed"]),
        dataset=dataset.name,
        identity=dataset.train.identity,
        names=listed,
        indices=indices,
        offsets=offsets,
    )


def _header(path: Path, fields: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
    try:
        stored = fields["header"]
        header = json.loads(stored.tobytes()) if stored.dtype == np.uint8 else None
    except (KeyError, ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or type(header.get("seed")) is not int:
        raise InputError(f"{path}: its header is missing or damaged; expected {_EXPECTED}")
    if header.get("format") != _FORMAT:
        raise InputError(
            f"{path}: format {ascii(header.get('format'))[:20]}; this version reads {_FORMAT}: make it again"
        )
    return header


def _arrays(path: Path, fields: dict[str, npt.NDArray[Any]]) -> tuple[Any, Any, Any]:
    for name, kind in (("names", "S"), ("indices", "i8"), ("offsets", "i8")):
        array = fields.get(name)
        if array is None or array.ndim != 1 or not (array.dtype == np.dtype(kind) or array.dtype.kind == kind):
            raise InputError(f"{path}: array {name!r} is missing or of another type; expected {_EXPECTED}")
    names, indices, offsets = fields["names"], fields["indices"], fields["offsets"]
    if (
        len(offsets) != len(names) + 1
        or len(names) == 0
        or (offsets[0], offsets[-1]) != (0, len(indices))
        or (np.diff(offsets) < 1).any()
    ):
        raise InputError(f"{path}: its offsets don't fit its names and examples; expected {_EXPECTED}")
    return names, indices, offsets
