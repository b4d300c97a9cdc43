"""Folders of data in every format, and ways to damage them: bits, lengths, types, values, and what JSON can say."""

from __future__ import annotations

import copy
import gzip
import io
import json
import pickle
import random
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.errors import InputError
from device_runtime.examples import Examples
from device_runtime.tensors import is_finite
from tff_sim import datasets
from tff_sim.federated_data import DataSpec, FederatedData, make_population
from tff_sim.partition import deal, scheme
from tff_sim.partition.file import save_partition
from tff_sim.population import write_population

Damage = Callable[[bytes, random.Random], bytes]

_BYTES = (0, 1, 10, 34, 40, 91, 127, 128, 255)
_NUMBERS = (0, -1, 1, 2**31 - 1, 2**31, 2**63, 10**400, 1e39, 1e300, -1e300, float("nan"), float("inf"), 0.5)
_VALUES: tuple[Any, ...] = (
    *_NUMBERS, None, True, "", "\ud800", "a\nb", "é", "\x1b[2J", "x" * 300, [], {}, [[]], [[[]]], ["iid"], {"a": 1},
)  # fmt: skip


# Folders that are whole


def _idx(array: npt.NDArray[Any]) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x800 | array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def _mnist(folder: Path) -> DataSpec:
    for part, count in (("train", 3), ("t10k", 2)):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(_idx(np.full((count, 28, 28), 7)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(np.arange(count))))
    return DataSpec("mnist", folder, clients=2)


def _cifar_binary(folder: Path) -> DataSpec:
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        (folder / f"{name}.bin").write_bytes(
            b"".join(bytes([label]) + bytes([label * 9, 5, 7] * 1024) for label in (3, 9))
        )
    return DataSpec("cifar10", folder, clients=2)


def _cifar_python(folder: Path) -> DataSpec:
    for number, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        batch = {b"data": np.full((2, 3072), number, np.uint8), b"labels": [1, 9], b"batch_label": b"one of six"}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return DataSpec("cifar10", folder, clients=2)


def _shakespeare(folder: Path) -> DataSpec:
    speech = "".join(f"and so says line number {number} of them.\n" for number in range(20))
    (folder / "input.txt").write_text(f"First Citizen:\n{speech}\nKING LEAR:\n{speech}")
    return DataSpec("shakespeare-lines", folder)


def _leaf(folder: Path, x: list[Any], y: list[Any]) -> DataSpec:
    for part in ("train", "test"):
        (folder / part).mkdir()
        data = {user: {"x": x, "y": y} for user in ("a 1", "b")}
        content = {"users": list(data), "num_samples": [len(y)] * 2, "user_data": data}
        (folder / part / "all.json").write_text(json.dumps(content))
    return DataSpec("leaf", folder)


def _leaf_numbers(folder: Path) -> DataSpec:
    return _leaf(folder, [[1, 0.5], [2, 3]], [0, 3])


def _leaf_text(folder: Path) -> DataSpec:
    return _leaf(folder, ["to be", "or no"], [" ", "t"])


def _npz(folder: Path) -> DataSpec:
    for name, count in (("phone-0", 3), ("phone-1", 2), ("_test", 2)):
        np.savez(folder / f"{name}.npz", x=np.ones((count, 2), np.float32), y=np.arange(count, dtype=np.int32))
    return DataSpec("npz", folder)


def _packed(folder: Path) -> DataSpec:
    part = Examples(np.ones((3, 2), np.float32), np.arange(3, dtype=np.int32))
    write_population(folder / "fleet", [("phone-0", part), ("phone-1", part)], part)
    return DataSpec("packed", folder / "fleet")


def _partition(folder: Path) -> DataSpec:
    path = folder / "partition.npz"
    save_partition(deal(datasets.load("digits"), scheme("dirichlet"), 5, 0), path)
    return DataSpec(partition_file=path)


FOLDERS: dict[str, Callable[[Path], DataSpec]] = {
    "IDX": _mnist,
    "CIFAR-10": _cifar_binary,
    "CIFAR-10 for Python": _cifar_python,
    "Shakespeare": _shakespeare,
    "LEAF's numbers": _leaf_numbers,
    "LEAF's text": _leaf_text,
    "npz": _npz,
    "packed": _packed,
    "partition": _partition,
}


# Damage


def _bits(content: bytes, draws: random.Random) -> bytes:
    changed = bytearray(content)
    reach = draws.choice((130, len(changed)))  # headers are at the start
    for _ in range(draws.choice((1, 1, 2, 5))):
        place = draws.randrange(min(reach, len(changed)))
        changed[place] = draws.choice((changed[place] ^ 1 << draws.randrange(8), draws.choice(_BYTES)))
    return bytes(changed)


def _length(content: bytes, draws: random.Random) -> bytes:
    first, last = sorted(draws.randrange(len(content) + 1) for _ in range(2))
    return draws.choice(
        (content[:first], content[first:], content[:first] + content[last:], content[:last] + content[first:], b"")
    )


def _nested(content: bytes, draws: random.Random) -> bytes:
    return draws.choice((b"[", b'{"a":', b"(", b"]")) * draws.choice((40, 900, 990, 100_000))


def _json(content: bytes, draws: random.Random) -> bytes:
    """Something else in a place of the tree, or a field that is missing or has another name."""
    root: list[Any] = [json.loads(content)]
    for _ in range(draws.choice((1, 1, 2))):
        holder, key = draws.choice(list(_places(root)))
        if isinstance(holder, dict) and draws.random() < 0.2:
            value = holder.pop(key)
            if draws.random() < 0.5:
                holder[draws.choice([name for name in _VALUES if isinstance(name, str)])] = value
        else:
            holder[key] = copy.deepcopy(draws.choice(_VALUES))  # the next change may be inside of it
    return json.dumps(root[0]).encode()


def _places(holder: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or dictionary of a tree with each of its indices or keys."""
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        yield holder, key
        if isinstance(holder[key], dict | list):
            yield from _places(holder[key])


def _array(array: npt.NDArray[Any], draws: random.Random) -> npt.NDArray[Any]:
    kind = draws.randrange(6)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            if kind == 0 and array.dtype.kind in "if":
                return array.astype(draws.choice(("f2", "f8", ">f4", ">i8", "i1", "u8", "c8", "?", "i4", "f4")))
            if kind == 0:
                return np.zeros(array.shape, draws.choice(("S3", "U2", "M8[s]", "m8[D]", "O", "V4", "i4")))
            if kind == 1:
                changed = array.copy()
                changed.reshape(-1)[draws.randrange(changed.size)] = draws.choice(_NUMBERS)
                return changed
            if kind == 2:
                return array[: draws.randrange(len(array) + 1)]
            if kind == 3:
                return array.reshape(draws.choice(((-1,), (-1, 1), (1, -1), array.shape + (1,) * 20)))[::-1]
            if kind == 4:
                empty: tuple[npt.NDArray[Any], ...] = (
                    np.zeros(len(array), "S0"), np.array(None), array[0], np.zeros((*array.shape, 0), array.dtype),
                    np.zeros(len(array), [("x", "f4")]), np.empty(len(array), "V0"),
                )  # fmt: skip
                return draws.choice(empty)
            return np.asfortranarray(np.concatenate([array, array]))
        except (ValueError, TypeError, OverflowError, IndexError):
            return array[:0]


def _npz_arrays(content: bytes, draws: random.Random) -> bytes:
    with np.load(io.BytesIO(content)) as arrays:
        fields = dict(arrays)
    name = draws.choice(list(fields))
    if name == "header" and draws.random() < 0.8:
        header = draws.choice((_json, _json, _nested, _bits))(fields[name].tobytes(), draws)
        fields[name] = np.frombuffer(header, np.uint8)
    else:
        fields[name] = _array(fields[name], draws)
    if draws.random() < 0.1:
        del fields[name]
    out = io.BytesIO()
    np.savez(out, **fields)
    return out.getvalue()


def _npy_array(content: bytes, draws: random.Random) -> bytes:
    out = io.BytesIO()
    np.save(out, _array(np.load(io.BytesIO(content)), draws))
    return out.getvalue()


def _npy_values(content: bytes, draws: random.Random) -> bytes:
    array = np.load(io.BytesIO(content)).copy()
    if array.dtype.kind in "if":
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            place = draws.randrange(array.size)
            array.reshape(-1)[place] = draws.choice(
                (np.nan, np.inf, 1e30) if array.dtype.kind == "f" else (-3, 0, 1, 7)
            )
    out = io.BytesIO()
    np.save(out, array if draws.random() < 0.7 else array[::-1])
    return out.getvalue()


def _compressed(content: bytes, draws: random.Random) -> bytes:
    return gzip.compress(draws.choice((_bits, _length))(gzip.decompress(content), draws))


def _text(content: bytes, draws: random.Random) -> bytes:
    lines = content.split(b"\n")
    for _ in range(draws.choice((1, 3, 10))):
        place = draws.randrange(len(lines))
        lines[place] = draws.choice(
            (b"", b":", b"A:", b"\xff", "\u2028:\x85é".encode(), b"\x1b[2J:", b"x" * 999, b"\0")
        )
    return b"\n".join(lines)


_OF_KIND: dict[str, tuple[Damage, ...]] = {
    ".json": (_json, _json, _json),
    ".npz": (_npz_arrays, _npz_arrays, _npz_arrays),
    ".npy": (_npy_array, _npy_values),
    ".gz": (_compressed,),
    ".txt": (_text, _text),
}


def damage(folder: Path, draws: random.Random) -> tuple[Path, str]:
    """Damage one of a folder's files in one way; the file, and the way."""
    path = draws.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    ways = (*_OF_KIND.get(path.suffix, ()), _bits, _bits, _length)
    way = draws.choice((*ways, _nested) if draws.random() < 0.2 else ways)
    path.write_bytes(way(path.read_bytes(), draws))
    return path, way.__name__


def survive(spec: DataSpec) -> str:
    """Load everything: what comes is fit to train on, or one line says why not; which of both, and the line.

    Raises:
        AssertionError: something does not hold; and whatever else comes in the place of a line.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            data = make_population(spec)
            _look_at(data)
        except InputError as error:
            line = str(error)
            assert line.isprintable(), repr(line)
            assert len(line) < 700, line
            return line
    return ""


def _look_at(data: FederatedData) -> None:
    types = data.clients.example_types
    for part in (*data.clients.values(), data.test):
        assert len(part) == len(part.x) == len(part.y) > 0
        assert ((str(part.x.dtype), part.x.shape[1:]), (str(part.y.dtype), part.y.shape[1:])) == types
        assert is_finite(part.x)
        assert is_finite(part.y)
    data.clients.summary().to_json()
    assert data.clients.label_bounds is None or data.clients.label_bounds[0] <= data.clients.label_bounds[1]
    assert len(data.identity) == 64
