"""Text by role and LEAF's JSON: which client has what, that no position is padding, and every error's line."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.examples import Examples
from tff_sim import datasets
from tff_sim.datasets.characters import STEPS, circular_windows, full_windows, symbols
from tff_sim.datasets.dataset import device_names
from tff_sim.errors import DatasetError
from tff_sim.partition import deal, scheme

EXPECTED = "plain text in UTF-8: a line 'SPEAKER:', then lines, then an empty line"
LEAF = "LEAF's folders train and test of .json files"
LEAF_FILE = "an object with 'users', 'num_samples' and 'user_data'"


def _text(values: Any) -> str:
    return bytes(np.asarray(values, np.uint8)).decode()


def _speech(role: str, first: int, last: int) -> str:
    return (
        f"{role}:\n" + "".join(f"{role} says its line number {number:03d}.\n" for number in range(first, last)) + "\n"
    )


PLAY = (
    _speech("First Citizen", 0, 3)
    + _speech("ALL", 0, 1)
    + _speech("KING  LEAR", 0, 20)
    + _speech("First Citizen", 3, 10)
    + "NOBODY:\n\n"
)


@pytest.fixture
def play(tmp_path: Path) -> Path:
    (tmp_path / "input.txt").write_text(PLAY)
    return tmp_path


def _message(name: str, folder: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        datasets.load(name, folder)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_role_with_two_lines_is_a_client_and_its_first_lines_are_for_training(play: Path) -> None:
    data = datasets.load("shakespeare", play)
    assert data.owners is not None
    assert data.owners.names == ("First_Citizen", "KING_LEAR")  # ALL has one line, NOBODY has none
    first = data.train.x[data.owners.of == 0]
    lines = [f"First Citizen says its line number {number:03d}.\n" for number in range(10)]
    # All of the first 8 lines, and then from the start again until the last window is full.
    assert _text(first.ravel()) == ("".join(lines[:8]) * 2)[: first.size]
    assert len(first) == -(-len("".join(lines[:8])) // STEPS)
    tested = "".join(lines[8:] + [f"KING  LEAR says its line number {number:03d}.\n" for number in range(16, 20)])
    assert _text(data.test.x.ravel()) == tested[: data.test.x.size]
    assert len(tested) - 1 - data.test.x.size < STEPS


def test_labels_are_the_next_characters(play: Path) -> None:
    data = datasets.load("shakespeare", play)
    for part in (data.train, data.test):
        assert part.x.shape == part.y.shape == (len(part), STEPS)
        assert part.x.dtype == part.y.dtype == np.int32
        np.testing.assert_array_equal(part.x[:, 1:], part.y[:, :-1])


@given(st.text(min_size=1, max_size=300), st.integers(1, 90))
def test_circular_windows_are_full_and_hold_every_character(text: str, steps: int) -> None:
    values = symbols(text)
    found = circular_windows(text, steps)
    assert found.x.shape == found.y.shape == (-(-len(values) // steps), steps)
    assert found.x.ravel()[: len(values)].tolist() == values.tolist()
    for place in range(found.x.size):
        assert found.x.ravel()[place] == values[place % len(values)]
        assert found.y.ravel()[place] == values[(place + 1) % len(values)]


@given(st.text(max_size=300), st.integers(1, 90))
def test_full_windows_predict_each_character_once(text: str, steps: int) -> None:
    values = symbols(text)
    found = full_windows(text, steps)
    assert found.y.ravel().tolist() == values[1 : 1 + found.y.size].tolist()
    assert 0 <= max(len(values) - 1, 0) - found.y.size < steps


def test_each_line_may_begin_an_example(play: Path) -> None:
    data = datasets.load("shakespeare-lines", play)
    assert data.name == "shakespeare-lines"
    assert data.owners is not None
    assert np.bincount(data.owners.of).tolist() == [8, 16]  # the first 80 % of lines
    lines = [f"First Citizen says its line number {number:03d}.\n" for number in range(8)]
    circle = "".join(lines) * 3
    for number, row in enumerate(data.train.x[:8]):
        start = len("".join(lines[:number]))
        assert _text(row) == circle[start : start + STEPS]
    np.testing.assert_array_equal(data.train.x[:, 1:], data.train.y[:, :-1])
    np.testing.assert_array_equal(data.test.x, datasets.load("shakespeare", play).test.x)


def test_the_balanced_variant_deals_the_same_windows_evenly_to_as_many_clients(play: Path) -> None:
    data = datasets.load("shakespeare", play)
    assert data.owners is not None
    dealt = deal(data, scheme("iid"), None, 0)
    assert len(dealt) == len(data.owners.names)
    assert sorted(dealt.indices.tolist()) == list(range(len(data.train)))
    assert np.ptp(dealt.sizes) <= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"no role has 2 lines; expected {EXPECTED}"),
        (_speech("A", 0, 1), f"no role has 2 lines; expected {EXPECTED}"),
        ("A:\none\n\nno speaker here\n", "line 4 should be a speaker's name and a colon, not 'no speaker here'"),
        (":\none\n", "line 1 should be a speaker's name and a colon, not ':'"),
        (
            _speech("A", 0, 3),
            "the last fifths of all roles' lines are fewer than 81 characters; use a longer text",
        ),
    ],
)
def test_a_text_of_another_form_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "input.txt").write_text(text)
    assert _message("shakespeare", tmp_path) == f"{tmp_path / 'input.txt'}: {message}"


def test_a_text_that_is_not_utf_8_is_named(play: Path) -> None:
    (play / "input.txt").write_bytes(b"A:\n\xff\n")
    assert _message("shakespeare", play) == f"{play / 'input.txt'}: byte 3 is not UTF-8; expected {EXPECTED}"


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    assert _message("shakespeare", tmp_path) == f"{tmp_path / 'input.txt'}: no such file; expected {EXPECTED}"
    nowhere = tmp_path / "nowhere"
    assert _message("shakespeare", nowhere) == (
        f"{nowhere}: no such folder; --data-dir should hold input.txt, {EXPECTED}"
    )


def test_names_of_devices_are_allowed_and_different() -> None:
    names = device_names(["First Citizen", "First  Citizen", "Señor", "..", "", "x" * 80, "x" * 90, "_test"])
    assert names == (
        "First_Citizen",
        "First_Citizen-2",
        "Se_or",
        "client",
        "client-2",
        "x" * 64,
        "x" * 62 + "-2",
        "test",
    )


@pytest.mark.data
def test_the_genuine_shakespeare(data_dir: Path) -> None:
    data = datasets.load("shakespeare", data_dir / "shakespeare")
    assert data.owners is not None
    text = (data_dir / "shakespeare" / "input.txt").read_text()
    lines: Counter[str] = Counter()
    for block in re.split(r"\n\n+", text.strip()):
        speaker, *spoken = block.split("\n")
        lines[" ".join(speaker[:-1].split())] += len(spoken)
    assert len(data.owners.names) == sum(count >= 2 for count in lines.values()) == 267
    assert data.train.x.max() < 128
    # Train and test share the text by 4 to 1, but for whole lines, and names of speakers are not spoken.
    assert 0.78 < data.train.x.size / (data.train.x.size + data.test.x.size) < 0.82


# LEAF


def _leaf(x: Any, y: Any, *users: str) -> dict[str, Any]:
    data = {user: {"x": x, "y": y} for user in users}
    return {"users": list(users), "num_samples": [len(y)] * len(users), "user_data": data}


def _write_leaf(folder: Path, content: dict[str, Any]) -> None:
    """The same for training and for tests."""
    for part in ("train", "test"):
        (folder / part).mkdir()
        (folder / part / "a.json").write_text(json.dumps(content))


@pytest.fixture
def leaf(tmp_path: Path) -> Path:
    """Two writers in two files, three images each, and two of one to test with."""
    rng = np.random.default_rng(0)
    for part, users in (("train", ("f0000_14", "f0001 41")), ("test", ("f0000_14",))):
        (tmp_path / part).mkdir()
        for user in users:
            content = _leaf(rng.random((3, 784)).round(3).tolist(), [1, 61, 0], user)
            (tmp_path / part / f"{user[:5]}.json").write_text(json.dumps(content | {"hierarchies": []}))
    return tmp_path


def test_leaf_s_users_are_clients_and_its_pixels_images(leaf: Path) -> None:
    data = datasets.load("leaf", leaf)
    assert data.owners is not None
    assert data.owners.names == ("f0000_14", "f0001_41")
    assert data.owners.of.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train.x.shape == (6, 28, 28, 1)
    assert data.train.x.dtype == np.float32
    assert data.test.y.tolist() == [1, 61, 0]
    content = json.loads((leaf / "train" / "f0001.json").read_text())
    np.testing.assert_allclose(data.train.x[3].ravel(), content["user_data"]["f0001 41"]["x"][0], rtol=1e-6)


def test_leaf_s_other_numbers_stay_rows(tmp_path: Path) -> None:
    _write_leaf(tmp_path, _leaf([[1.5, 2], [3, 4]], [0, 1], "u"))
    assert datasets.load("leaf", tmp_path).train.x.tolist() == [[1.5, 2], [3, 4]]


def test_leaf_s_text_is_labelled_at_each_step(tmp_path: Path) -> None:
    _write_leaf(tmp_path, _leaf(["To be or", "not to b"], [" ", "e"], "HAMLET"))
    train = datasets.load("leaf", tmp_path).train
    assert [_text(row) for row in train.x] == ["To be or", "not to b"]
    assert [_text(row) for row in train.y] == ["o be or ", "ot to be"]


def test_a_user_without_examples_is_left_out(leaf: Path) -> None:
    (leaf / "train" / "z.json").write_text(json.dumps(_leaf([], [], "empty")))
    owners = datasets.load("leaf", leaf).owners
    assert owners is not None
    assert owners.names == ("f0000_14", "f0001_41")


NEITHER = "'x' is neither text nor rows of as many finite numbers; expected one of them"
TOO_LARGE = "'x' holds a number that float32 has not; expected at most 3.4e38 either way"
HALF = "half a surrogate pair; expected whole characters"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], f"a field is missing or of another type; expected {LEAF_FILE}"),
        ({"users": []}, f"a field is missing or of another type; expected {LEAF_FILE}"),
        (
            _leaf([[1]], [1], "u") | {"num_samples": []},
            "1 users and 0 num_samples; expected as many of both",
        ),
        (
            _leaf([[1]], [1], "u") | {"user_data": {}},
            f"user 'u': not in user_data with the lists 'x' and 'y'; expected {LEAF_FILE}",
        ),
        (
            _leaf([[1]], [1], "u") | {"users": [["u"]]},
            f"user \"['u']\": not in user_data with the lists 'x' and 'y'; expected {LEAF_FILE}",
        ),
        (
            _leaf([[1]], [1], "u") | {"num_samples": [2]},
            "user 'u': 1 x, 1 y and num_samples 2; expected as many of each",
        ),
        (
            _leaf([[1], [1, 2]], [1, 2], "u"),
            "user 'u': 'x' is neither text nor rows of as many finite numbers; expected one of them",
        ),
        (
            _leaf([[1], [float("nan")]], [1, 2], "u"),
            "user 'u': 'x' is neither text nor rows of as many finite numbers; expected one of them",
        ),
        (
            _leaf([["a"]], [1], "u"),
            "user 'u': 'x' is neither text nor rows of as many finite numbers; expected one of them",
        ),
        (_leaf([[]], [1], "u"), f"user 'u': {NEITHER}"),
        (_leaf([[[1]]], [1], "u"), f"user 'u': {NEITHER}"),
        (_leaf([[10**400, 1.5]], [1], "u"), f"user 'u': {NEITHER}"),
        (_leaf([[1e300]], [1], "u"), f"user 'u': {TOO_LARGE}"),
        (_leaf([[0, -3.5e38]], [1], "u"), f"user 'u': {TOO_LARGE}"),
        (_leaf([[1]], [1.5], "u"), "user 'u': 'y' is not whole numbers from 0 on; expected one for each x"),
        (_leaf([[1]], [-1], "u"), "user 'u': 'y' is not whole numbers from 0 on; expected one for each x"),
        (_leaf([[1]], [2**31], "u"), "user 'u': 'y' is not whole numbers from 0 on; expected one for each x"),
        (_leaf([[1]], [None], "u"), "user 'u': 'y' is not whole numbers from 0 on; expected one for each x"),
        (
            _leaf(["abc", "ab"], ["d", "c"], "u"),
            "user 'u': texts of different lengths; expected as many bytes of UTF-8 in each, and a label",
        ),
        (_leaf(["abc"], ["de"], "u"), "user 'u': a label is not one character; expected the one after the text"),
        (_leaf(["abc"], [""], "u"), "user 'u': a label is not one character; expected the one after the text"),
        (_leaf([""], ["a"], "u"), "user 'u': a text is empty; expected at least one character in each"),
        (_leaf(["ab\ud800"], ["c"], "u"), f"user 'u': a text holds U+D800, {HALF}"),
        (_leaf(["ab"], ["\udfff"], "u"), f"user 'u': a text holds U+DFFF, {HALF}"),
        (
            _leaf([[1]], [1], "u") | {"num_samples": ["a\nb"]},
            "user 'u': 1 x, 1 y and num_samples something else; expected as many of each",
        ),
        (_leaf([[1]], [1], "f0000_14"), "user 'f0000_14' stands there a second time; expected each user once"),
    ],
)
def test_a_leaf_file_of_another_form_is_named(leaf: Path, content: Any, message: str) -> None:
    path = leaf / "train" / "z.json"
    path.write_text(json.dumps(content))
    assert _message("leaf", leaf) == f"{path}: {message}"


def test_a_truncated_leaf_file_is_named(leaf: Path) -> None:
    path = leaf / "train" / "f0000.json"
    path.write_text(path.read_text()[:-20])
    message = _message("leaf", leaf)
    assert message.startswith(f"{path}: truncated or not JSON (")
    assert message.endswith(f"); expected {LEAF_FILE}")
    path.write_text("[" * 100_000)
    assert _message("leaf", leaf).startswith(f"{path}: truncated or not JSON (")


def test_missing_parts_of_leaf_are_named(leaf: Path, tmp_path: Path) -> None:
    (leaf / "test" / "f0000.json").unlink()
    assert _message("leaf", leaf) == f"{leaf / 'test'}: no .json file in it; --data-dir should hold {LEAF}"
    (leaf / "test").rmdir()
    assert _message("leaf", leaf) == f"{leaf / 'test'}: no such folder; --data-dir should hold {LEAF}"
    (leaf / "test").mkdir()
    (leaf / "test" / "a.json").write_text(json.dumps(_leaf([], [], "u")))
    assert _message("leaf", leaf) == f"{leaf / 'test'}: no user in it has an example; --data-dir should hold {LEAF}"


@pytest.mark.parametrize(
    ("part", "x", "y", "found"),
    [
        ("test", [[1, 2]], [1], "float32[1, 2]"),
        ("train", [[1, 2]], [1], "float32[1, 2]"),
        ("train", ["a" * 784], ["b"], "int32[1, 784]"),
    ],
)
def test_users_with_other_features_are_refused(leaf: Path, part: str, x: Any, y: Any, found: str) -> None:
    path = leaf / part / "z.json"
    path.write_text(json.dumps(_leaf(x, y, "u")))
    assert _message("leaf", leaf) == (
        f"{path}: user 'u': x is {found}, of user 'f0000_14' float32[3, 28, 28, 1];"
        " expected the same type and shape in all users"
    )


def test_users_of_text_and_of_as_many_numbers_are_refused(tmp_path: Path) -> None:
    """Their features have one shape, and neither one type nor labels of one shape."""
    both = _leaf(["x" * 80], ["y"], "writer")
    both["users"].append("sensor")
    both["num_samples"].append(1)
    both["user_data"]["sensor"] = {"x": [list(range(80))], "y": [3]}
    _write_leaf(tmp_path, both)
    assert _message("leaf", tmp_path) == (
        f"{tmp_path / 'train' / 'a.json'}: user 'sensor': x is float32[1, 80], of user 'writer' int32[1, 80];"
        " expected the same type and shape in all users"
    )


def test_the_largest_numbers_of_float32_are_features(tmp_path: Path) -> None:
    _write_leaf(tmp_path, _leaf([[3.4028235e38, -3.4028235e38]], [0], "u"))
    assert datasets.load("leaf", tmp_path).train.x.max() == np.finfo(np.float32).max


# A folder of .npz files


def _save(path: Path, count: int, **more: Any) -> None:
    rng = np.random.default_rng(count)
    arrays = {"x": rng.random((count, 3), np.float32), "y": np.arange(count, dtype=np.int32)}
    np.savez(path, **(arrays | more))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    _save(tmp_path / "phone-0.npz", 4)
    _save(tmp_path / "phone-1.npz", 2, x_test=np.ones((1, 3), np.float32), y_test=np.array([9], np.int32))
    _save(tmp_path / "_test.npz", 5)
    return tmp_path


def test_a_file_is_a_client_of_its_name(files: Path) -> None:
    data = datasets.load("npz", files)
    assert data.owners is not None
    assert data.owners.names == ("phone-0", "phone-1")
    assert data.owners.of.tolist() == [0] * 4 + [1] * 2
    assert data.train.y.tolist() == [0, 1, 2, 3, 0, 1]
    assert data.test.y.tolist() == [0, 1, 2, 3, 4, 9]


X3 = np.zeros((2, 3), np.float32)
Y2 = np.zeros(2, np.int32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X3}, "array 'y' is missing; expected x and y"),
        ({"x": X3, "y": Y2, "y_test": Y2}, "array 'x_test' is missing; expected x_test and y_test"),
        ({"x": X3.astype(np.float64), "y": Y2}, "array 'x' is float64[2, 3]; expected float32 or int32 [n, …]"),
        ({"x": X3, "y": np.int32(1)}, "array 'y' is int32[]; expected float32 or int32 [n, …]"),
        ({"x": X3, "y": Y2[:1]}, "2 rows of x and 1 of y; expected as many, at least one"),
        ({"x": X3[:0], "y": Y2[:0]}, "0 rows of x and 0 of y; expected as many, at least one"),
        ({"x": X3 * np.nan, "y": Y2}, "array 'x' holds values that are not finite; leave those examples out"),
        (
            {"x": X3, "y": np.array([0, np.inf], np.float32)},
            "array 'y' holds values that are not finite; leave those examples out",
        ),
        (
            {"x": X3[:, :2], "y": Y2},
            "x is float32[2, 2], in _test.npz float32[5, 3]; expected the same type and shape in all files",
        ),
        (
            {"x": X3, "y": Y2.astype(np.float32)},
            "y is float32[2], in _test.npz int32[5]; expected the same type and shape in all files",
        ),
    ],
)
def test_a_client_s_file_of_another_form_is_named(files: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(files / "phone-1.npz", **arrays)
    assert _message("npz", files) == f"{files / 'phone-1.npz'}: {message}"


def test_nothing_to_train_or_to_test_with_is_said(files: Path, tmp_path: Path) -> None:
    holds = "a .npz file for each client, with arrays x and y, and _test.npz or arrays x_test and y_test"
    (files / "phone-1.npz").unlink()
    (files / "_test.npz").unlink()
    assert _message("npz", files) == f"{files}: no examples to test with; it should hold {holds}"
    (files / "phone-0.npz").rename(files / "_test.npz")
    assert _message("npz", files) == f"{files}: no examples to train with; it should hold {holds}"
    (files / "_test.npz").unlink()
    assert _message("npz", files) == f"{files}: no .npz file in it; --data-dir should hold {holds}"


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("cifar10", "the folder with the batches of CIFAR-10"),
        ("shakespeare", "the folder with the plays in input.txt"),
        ("leaf", "the folder with LEAF's train and test"),
        ("npz", "the folder with a .npz file for each client"),
        ("kmnist", "the folder with the four KMNIST files"),
    ],
)
def test_each_data_set_asks_for_its_folder(name: str, folder: str) -> None:
    with pytest.raises(DatasetError) as caught:
        datasets.load(name)
    assert str(caught.value) == f"data set {name!r}: --data-dir is missing; it names {folder}"


def test_examples_of_a_client_keep_their_order(files: Path) -> None:
    data = datasets.load("npz", files)
    dealt = deal(data, scheme("natural"), None, 0)
    assert list(dealt.names) == ["phone-0", "phone-1"]
    hand = dealt.hand(1)
    expected = np.load(files / "phone-1.npz")
    found = Examples(data.train.x[hand], data.train.y[hand])
    np.testing.assert_array_equal(found.x, expected["x"])
    np.testing.assert_array_equal(found.y, expected["y"])
