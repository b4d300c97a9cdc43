"""Local examples: each way in which a file can be unfit, and the words that say so."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.bundle import Bundle
from device_runtime.errors import InputError
from device_runtime.examples import ExampleTypes, check_examples, load_examples
from device_runtime.tensors import TensorSpec

NOT_NPZ = "not a .npz file with the arrays x and y (numpy.savez writes one)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "examples.npz"


def refusal(path: Path, bundle: Bundle) -> str:
    with pytest.raises(InputError) as caught:
        load_examples(path, bundle.manifest)
    where, message = str(caught.value).split(": ", 1)
    assert where == str(path)
    return message


def arrays(**changes: Any) -> dict[str, npt.NDArray[Any]]:
    return {"x": np.zeros((3, 8, 8, 1), np.float32), "y": np.array([0, 9, 5], np.int32)} | changes


def test_examples_are_read(examples_file: Callable[[int, int], Path], digits_bundle: Bundle) -> None:
    examples = load_examples(examples_file(5, 0), digits_bundle.manifest)
    assert (len(examples), examples.x.shape, str(examples.y.dtype)) == (5, (5, 8, 8, 1), "int32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.zeros((3, 64), np.float32)}, "array 'x' is float32[3, 64]; expected float32[n, 8, 8, 1]"),
        ({"x": np.zeros((3, 8, 8, 1))}, "array 'x' is float64[3, 8, 8, 1]; expected float32[n, 8, 8, 1]"),
        ({"y": np.zeros(3, np.int64)}, "array 'y' is int64[3]; expected int32[n]"),
        ({"y": np.zeros((3, 1), np.int32)}, "array 'y' is int32[3, 1]; expected int32[n]"),
        ({"y": np.int32(1)}, "array 'y' is int32[]; expected int32[n]"),
        ({"y": np.zeros(2, np.int32)}, "3 rows of x and 2 of y; expected as many of both, at least one"),
        (
            {"x": np.zeros((0, 8, 8, 1), np.float32), "y": np.zeros(0, np.int32)},
            "0 rows of x and 0 of y; expected as many of both, at least one",
        ),
        ({"x": np.full((3, 8, 8, 1), np.nan, np.float32)}, "array 'x' holds values that are not finite"),
        ({"x": np.full((3, 8, 8, 1), np.inf, np.float32)}, "array 'x' holds values that are not finite"),
        ({"y": np.array([0, 10, 3], np.int32)}, "array 'y' holds labels from 0 to 10; expected 0 to 9"),
        ({"y": np.array([0, -1, 3], np.int32)}, "array 'y' holds labels from -1 to 3; expected 0 to 9"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unfit_arrays(path: Path, digits_bundle: Bundle, changes: dict[str, Any], message: str) -> None:
    np.savez(path, **arrays(**changes))
    assert refusal(path, digits_bundle) == message


@pytest.mark.parametrize(("name", "expected"), [("x", "float32[n, 8, 8, 1]"), ("y", "int32[n]")])
def test_a_missing_array(path: Path, digits_bundle: Bundle, name: str, expected: str) -> None:
    fields = arrays()
    del fields[name]
    np.savez(path, **fields)
    assert refusal(path, digits_bundle) == f"array {name!r} is missing; expected {expected}"


def test_labels_of_another_loss_are_free(digits_bundle: Bundle) -> None:
    manifest = replace(digits_bundle.manifest, loss="another")
    assert len(check_examples(arrays(y=np.array([0, 10, -3], np.int32)), manifest, "here")) == 3


def test_numbers_to_predict_are_finite(digits_bundle: Bundle) -> None:
    types = replace(ExampleTypes.of(digits_bundle.manifest), y=TensorSpec("y", (None,)), classes=None)
    for value in (np.nan, -np.inf):
        with pytest.raises(InputError, match=r"^here: array 'y' holds values that are not finite$"):
            types.check(arrays(y=np.array([0, value, 1], np.float32)), "here")
    assert len(types.check(arrays(y=np.array([0, -1e30, 1], np.float32)), "here")) == 3


def test_a_file_that_cannot_be_read(tmp_path: Path, digits_bundle: Bundle) -> None:
    assert refusal(tmp_path / "no.npz", digits_bundle) == "can't read the examples: No such file or directory"
    assert refusal(tmp_path, digits_bundle) == "can't read the examples: Is a directory"


def bytes_of(save: Callable[..., None], *values: Any, **fields: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *values, **fields)
    return buffer.getvalue()


def npz_of(member: bytes, name: str = "x.npy") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, member)
    return buffer.getvalue()


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x,y\n1,2\n",
        b"PK\x03\x04",
        bytes_of(np.save, np.zeros(3)),
        bytes_of(np.savez, x=np.array([{}], object)),
        bytes_of(np.savez, **arrays())[:-30],
        npz_of(npy_header("{'descr': '<f4', 'shape': (")),
        npz_of(npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,), }")),
    ],
    ids=["empty", "text", "zip", "npy", "pickle", "truncated", "half a header", "364 TiB"],
)
def test_a_file_that_is_no_npz(path: Path, digits_bundle: Bundle, data: bytes) -> None:
    path.write_bytes(data)
    assert refusal(path, digits_bundle) == NOT_NPZ


def test_a_zip_of_other_files(path: Path, digits_bundle: Bundle) -> None:
    path.write_bytes(npz_of(b"raw", "x"))
    assert refusal(path, digits_bundle) == "array 'x' is |S3[]; expected float32[n, 8, 8, 1]"


@pytest.fixture(scope="module")
def module_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "examples.npz"


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=3), st.booleans())
def test_a_damaged_file_is_read_or_refused(
    module_path: Path, digits_bundle: Bundle, changes: list[tuple[int, int]], packed: bool
) -> None:
    data = bytearray(bytes_of(np.savez_compressed if packed else np.savez, **arrays()))
    for position, byte in changes:
        data[position % len(data)] = byte
    module_path.write_bytes(data)
    try:
        load_examples(module_path, digits_bundle.manifest)
    except InputError as error:
        assert str(error).startswith(f"{module_path}: ")
