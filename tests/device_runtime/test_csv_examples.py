"""Examples from CSV: rows as the types say, and the line and column of each that is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from device_runtime.csv_examples import read_csv
from device_runtime.errors import InputError
from device_runtime.examples import ExampleTypes
from device_runtime.tensors import TensorSpec

TYPES = ExampleTypes(TensorSpec("x", (None, 1, 2)), TensorSpec("y", (None,), "int32"), 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.csv"


def refusal(path: Path, types: ExampleTypes = TYPES, label: str = "y") -> str:
    with pytest.raises(InputError) as caught:
        read_csv(path, types, label)
    where, message = str(caught.value).split(": ", 1)
    assert where == str(path)
    return message


def test_features_are_in_c_order_wherever_the_label_is(path: Path) -> None:
    path.write_bytes(b'\xef\xbb\xbfa,y,"b, second"\r\n1,0,2.5\r\n\r\n-3e-2,2,"4"\r\n')
    arrays = read_csv(path, TYPES)
    assert np.array_equal(arrays["x"], np.array([[[1, 2.5]], [[-0.03, 4]]], np.float32))
    assert np.array_equal(arrays["y"], np.array([0, 2], np.int32))
    examples = TYPES.check(arrays, "here")
    assert len(examples) == 2


def test_a_label_of_another_name_and_kind(path: Path) -> None:
    path.write_text("price,a,b\n1.5,1,2\n")
    types = replace(TYPES, x=TensorSpec("x", (None, 2), "int32"), y=TensorSpec("y", (None,)), classes=None)
    arrays = read_csv(path, types, "price")
    assert (arrays["y"].tolist(), arrays["x"].tolist(), str(arrays["x"].dtype)) == ([1.5], [[1, 2]], "int32")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected a header with one column 'y' for the labels (--label)"),
        ("a,b,c\n1,2,3\n", "line 1: expected a header with one column 'y' for the labels (--label)"),
        ("y,a,y\n1,2,3\n", "line 1: expected a header with one column 'y' for the labels (--label)"),
        ("a,y\n1,2\n", "line 1: 1 columns of features; expected 2"),
        ("a,b,y\n", "no rows after the header; expected at least one"),
        ("a,b,y\n1,2,0\n1,2\n", "line 3: 2 columns; expected 3, as in the header"),
        ("a,b,y\n1,2,0\n1,2,0,0\n", "line 3: 4 columns; expected 3, as in the header"),
        ("a,b,y\n1,2,0\n\n1,secret,0\n", "line 4: column 'b': expected a number"),
        ("a,b,y\n1,,0\n", "line 2: column 'b': expected a number"),
        ("a,b,y\nnan,2,0\n", "line 2: column 'a': expected a number"),
        ("a,b,y\n1e39,2,0\n", "line 2: column 'a': expected a number"),
        ("a,b,y\n1,-inf,0\n", "line 2: column 'b': expected a number"),
        ("a,b,y\n1,2,1.0\n", "line 2: column 'y': expected a whole number from 0 to 2"),
        ("a,b,y\n1,2,3\n", "line 2: column 'y': expected a whole number from 0 to 2"),
        ("a,b,y\n1,2,-1\n", "line 2: column 'y': expected a whole number from 0 to 2"),
        ("a,b,y\n1,2," + "9" * 400 + "\n", "line 2: column 'y': expected a whole number from 0 to 2"),
        ('a,b,y\n1,2,"0\n', "line 2: unexpected end of data"),
        ('a,b,y\n1,"2"3,0\n', "line 2: ',' expected after '\"'"),
        ("a,b,y\n1,2,0\n1," + "2" * 200_000 + ",0\n", "line 3: field larger than field limit (131072)"),
    ],
)
def test_malformed_rows(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    assert refusal(path) == message


def test_whole_numbers_that_are_too_large(path: Path) -> None:
    path.write_text("a,b,y\n1,2147483648,0\n")
    types = replace(TYPES, x=TensorSpec("x", (None, 2), "int32"))
    assert refusal(path, types) == "line 2: column 'b': expected a whole number"


def test_files_that_can_t_be_read(path: Path) -> None:
    assert refusal(path) == "can't read the examples: No such file or directory"
    path.write_bytes(b"a,b,y\n1,\xff,0\n")
    assert refusal(path) == "not a CSV file in UTF-8"
    path.write_text("a,b,y\n1,2,0\n")
    types = replace(TYPES, y=TensorSpec("y", (None, 80), "int32"))
    assert refusal(path, types) == "a CSV file has one label a row, but y is int32[n, 80]; use a .npz file"
