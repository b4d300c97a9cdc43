"""A partition in a file comes back as it was, for the same data only; damage of every kind is one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_runtime.errors import InputError
from device_runtime.examples import Examples
from tff_sim import datasets
from tff_sim.datasets import Dataset, Owners
from tff_sim.partition import SCHEMES, deal, scheme
from tff_sim.partition.file import load_partition, save_partition

EXPECTED = "expected a partition that 'pocketfed data partition' wrote"


@pytest.fixture(scope="module")
def digits() -> Dataset:
    data = datasets.load("digits")
    owners = Owners(("first-half", "second_half"), (np.arange(len(data.train)) // 719).astype(np.int32))
    return replace(data, owners=owners)


@pytest.mark.parametrize("name", list(SCHEMES))
def test_what_is_saved_comes_back(digits: Dataset, name: str, tmp_path: Path) -> None:
    path = tmp_path / "partition.npz"
    made = deal(digits, scheme(name), None if name == "natural" else 13, 5)
    save_partition(made, path)
    found = load_partition(path, digits)
    assert (found.scheme, found.seed, found.dataset, found.identity) == (made.scheme, 5, "digits", made.identity)
    assert list(found.names) == list(made.names)
    np.testing.assert_array_equal(found.indices, made.indices)
    np.testing.assert_array_equal(found.offsets, made.offsets)
    assert [path.name for path in tmp_path.iterdir()] == ["partition.npz"]


def test_the_names_of_saved_clients_are_found(digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "partition.npz"
    save_partition(deal(digits, scheme("iid"), 13, 0), path)
    names = load_partition(path, digits).names
    assert [names.find(name) for name in names] == list(range(13))
    assert names.find("client-013") is None
    assert names.find("") is None


def _message(path: Path, data: Dataset) -> str:
    with pytest.raises(InputError) as caught:
        load_partition(path, data)
    assert caught.value.exit_code == 2
    return str(caught.value).removeprefix(f"{path}: ")


def test_a_partition_of_other_examples_is_refused(digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "partition.npz"
    save_partition(deal(digits, scheme("iid"), 13, 0), path)
    x = digits.train.x.copy()
    x[700, 3, 3, 0] += 0.5
    other = Dataset("mine", Examples(x, digits.train.y), digits.test)
    assert _message(path, other) == (
        "a partition of other examples (data set 'digits') than those of 'mine' here: their SHA-256 differs; make one"
        " with 'pocketfed data partition'"
    )


def test_files_that_are_no_partition_are_named(digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "partition.npz"
    assert _message(path, digits) == f"no such file; {EXPECTED}"
    path.write_bytes(b"something else")
    assert _message(path, digits) == f"it can't be read, or is damaged; {EXPECTED}"
    np.savez(path, x=np.zeros(3))
    assert _message(path, digits) == f"its header is missing or damaged; {EXPECTED}"


@pytest.mark.parametrize("size", [0, 100, 2000])
def test_a_truncated_file_is_named(digits: Dataset, tmp_path: Path, size: int) -> None:
    path = tmp_path / "partition.npz"
    save_partition(deal(digits, scheme("iid"), 13, 0), path)
    path.write_bytes(path.read_bytes()[:size])
    assert _message(path, digits) == f"it can't be read, or is damaged; {EXPECTED}"


def _changed(fields: dict[str, Any], **header: Any) -> dict[str, Any]:
    content = json.loads(fields["header"].tobytes()) | header
    return {"header": np.frombuffer(json.dumps(content).encode(), np.uint8)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: {"header": np.frombuffer(b"{", np.uint8)}, f"its header is missing or damaged; {EXPECTED}"),
        (
            lambda f: {"header": np.frombuffer(b"[" * 100_000, np.uint8)},
            f"its header is missing or damaged; {EXPECTED}",
        ),
        (lambda f: {"header": f["header"].astype(np.complex64)}, f"its header is missing or damaged; {EXPECTED}"),
        (lambda f: _changed(f, seed="x"), f"its header is missing or damaged; {EXPECTED}"),
        (lambda f: _changed(f, format=2), "format 2; this version reads 1: make it again"),
        (lambda f: _changed(f, format="x\n" * 99), r"format 'x\nx\nx\nx\nx\nx\nx; this version reads 1: make it again"),
        (
            lambda f: _changed(f, scheme={"name": ["iid"]}),
            "scheme: expected a partition's name and parameters, not {'name': ['iid']}",
        ),
        (
            lambda f: _changed(f, scheme={"name": "dirichlet", "alpha": 10**400}),
            "scheme: expected a partition's name and parameters, not"
            f" {str({'name': 'dirichlet', 'alpha': 10**400})[:60]}",
        ),
        (
            lambda f: _changed(f, scheme={"name": "shards", "shards_per_client": 1.5}),
            "scheme: expected a partition's name and parameters, not {'name': 'shards', 'shards_per_client': 1.5}",
        ),
        (
            lambda f: _changed(f, scheme={"name": "dirichlet", "alpha": float("nan")}),
            "scheme: --alpha should be a finite number of at least 1e-06, not nan",
        ),
        (
            lambda f: _changed(f, scheme={"name": "by-hand"}),
            "scheme: expected a partition's name and parameters, not {'name': 'by-hand'}",
        ),
        (
            lambda f: {"indices": f["indices"].astype(np.int32)},
            f"array 'indices' is missing or of another type; {EXPECTED}",
        ),
        (
            lambda f: {"offsets": f["offsets"].reshape(1, -1)},
            f"array 'offsets' is missing or of another type; {EXPECTED}",
        ),
        (
            lambda f: {"names": f["names"].astype(np.str_)},
            f"array 'names' is missing or of another type; {EXPECTED}",
        ),
        (lambda f: {"offsets": f["offsets"][:-1]}, f"its offsets don't fit its names and examples; {EXPECTED}"),
        (lambda f: {"offsets": f["offsets"][::-1]}, f"its offsets don't fit its names and examples; {EXPECTED}"),
        (lambda f: {"indices": f["indices"][:-1]}, f"its offsets don't fit its names and examples; {EXPECTED}"),
        (
            lambda f: {"indices": f["indices"] + 1},
            f"it numbers examples that the data set does not have; {EXPECTED}",
        ),
        (
            lambda f: {"indices": np.minimum(f["indices"], 1400)},
            f"it deals an example twice; {EXPECTED}",
        ),
        (
            lambda f: {"names": np.array([b"client-000"] * 13)},
            f"two clients are named 'client-000'; {EXPECTED}",
        ),
        (
            lambda f: {"names": np.array([b"../%d" % number for number in range(13)])},
            f"a client's name is empty, or has other characters than letters, digits, '-', '_' and '.'; {EXPECTED}",
        ),
        (
            lambda f: {"names": np.array([b""] + [b"c%d" % number for number in range(12)])},
            f"a client's name is empty, or has other characters than letters, digits, '-', '_' and '.'; {EXPECTED}",
        ),
    ],
)
def test_a_damaged_partition_is_named(digits: Dataset, tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "partition.npz"
    save_partition(deal(digits, scheme("iid"), 13, 0), path)
    with np.load(path) as arrays:
        fields = dict(arrays)
    np.savez(path, **(fields | change(fields)))
    assert _message(path, digits) == message


def test_where_it_can_t_be_written_is_said(digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "partition.npz"
    with pytest.raises(InputError) as caught:
        save_partition(deal(digits, scheme("iid"), 13, 0), path)
    assert str(caught.value) == f"{path}: can't write it: No such file or directory; choose another file"
