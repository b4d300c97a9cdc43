"""``pocketfed-device data``: from files into a store, out of it again, and into training."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from device_runtime.bundle import Bundle
from device_runtime.cli import main
from device_runtime.examples import Examples, load_examples

Capture = pytest.CaptureFixture[str]
MakeFile = Callable[[int, int], Path]
TYPES = "x float32[n, 8, 8, 1] and y int32[n] from 0 to 9"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def said(capsys: Capture, *arguments: object, code: int = 0) -> str:
    """The one line that the command says, on standard output or, of an error, on the other."""
    assert main(["data", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    (line,) = (captured.err if code else captured.out).splitlines()
    assert (captured.out if code else captured.err) == ""
    return line.removeprefix("pocketfed-device: ")


def test_from_files_to_an_update_that_is_the_npz_s_own(
    store: Path, digits_bundle: Bundle, examples_file: MakeFile, tmp_path: Path, capsys: Capture
) -> None:
    whole = examples_file(23, 0)
    with np.load(whole) as arrays:
        x, y = arrays["x"], arrays["y"]
    np.savez(tmp_path / "first.npz", x=x[:10], y=y[:10])
    rows = [",".join([*(f"p{i}" for i in range(64)), "digit"])]
    rows += [
        ",".join([*map(repr, image.reshape(-1).tolist()), str(label)])
        for image, label in zip(x[10:], y[10:], strict=True)
    ]
    (tmp_path / "rest.CSV").write_text("\n".join(rows))
    bundle = digits_bundle.path
    line = said(capsys, "add", store, tmp_path / "first.npz", "--for", bundle)
    assert line == f"{store}: 10 examples added, 0 dropped, 10 in all"
    line = said(capsys, "add", store, tmp_path / "rest.CSV", "--label", "digit")
    assert line == f"{store}: 13 examples added, 0 dropped, 23 in all"
    updates = []
    for data in (store, whole):
        out = tmp_path / f"{data.name}.update"
        assert main(["train", str(bundle), "--data", str(data), "--out", str(out), "--batch-size", "5"]) == 0
        updates.append(out.read_bytes())
    assert updates[0] == updates[1]


def test_what_a_store_tells_of_itself(
    store: Path, digits_bundle: Bundle, examples_file: MakeFile, capsys: Capture
) -> None:
    said(capsys, "add", store, examples_file(5, 0), "--for", digits_bundle.path)
    assert main(["data", "info", str(store)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{store}: 5 examples of {TYPES}, ")
    assert lines[1].startswith(f"added from {time.strftime('%Y-')}")
    assert lines[2] == "limits: none"
    said(capsys, "expire", store, "--max-age", "30d", "--max-bytes", "5M", "--max-examples", "3")
    info = json.loads(said(capsys, "info", store, "--json"))
    assert info["limits"] == {"max_age": 30 * 86_400, "max_bytes": 5_000_000, "max_examples": 3}
    assert (info["examples"], info["types"]["classes"], info["oldest"] <= info["newest"]) == (3, 10, True)
    assert main(["data", "info", str(store)]) == 0
    assert capsys.readouterr().out.splitlines()[2] == ("limits: max age 2592000.0, max bytes 5000000, max examples 3")


def test_deleting_and_limits(store: Path, digits_bundle: Bundle, examples_file: MakeFile, capsys: Capture) -> None:
    data = examples_file(5, 0)
    line = said(capsys, "add", store, data, "--for", digits_bundle.path, "--max-examples", "4")
    assert line == f"{store}: 5 examples added, 1 dropped, 4 in all"
    assert said(capsys, "delete", store, "--id", "4", "--id", "77") == f"{store}: 1 examples deleted, 3 left"
    assert said(capsys, "delete", store, "--older-than", "1h") == f"{store}: 0 examples deleted, 3 left"
    time.sleep(1.1)
    assert said(capsys, "expire", store) == f"{store}: 0 examples dropped, 3 left"
    assert said(capsys, "expire", store, "--max-age", "1s") == f"{store}: 3 examples dropped, 0 left"
    line = said(capsys, "add", store, data, "--max-examples", "none", "--max-age", "none")
    assert line == f"{store}: 5 examples added, 0 dropped, 5 in all"
    assert said(capsys, "delete", store, "--all") == f"{store}: 5 examples deleted, 0 left"


def test_nothing_is_added_where_a_row_is_bad(
    store: Path, digits_bundle: Bundle, tmp_path: Path, capsys: Capture
) -> None:
    header = ",".join([*(f"p{i}" for i in range(64)), "y"])
    rows = [header, ",".join(["0.5"] * 64 + ["3"]), ",".join(["0.5"] * 63 + ["secret", "3"])]
    (tmp_path / "bad.csv").write_text("\n".join(rows))
    expected = f"{tmp_path / 'bad.csv'}: line 3: column 'p63': expected a number"
    assert said(capsys, "add", store, tmp_path / "bad.csv", "--for", digits_bundle.path, code=2) == expected
    assert not store.exists()


def test_errors(
    store: Path, digits_bundle: Bundle, examples_file: MakeFile, digits_examples: Callable[[int, int], Examples],
    tmp_path: Path, capsys: Capture,
) -> None:  # fmt: skip
    data, long = examples_file(5, 0), tmp_path / ("n" * 300)
    for path in (store, long):
        expected = f"{path}: no such store; name the bundle that a new one is for with --for BUNDLE"
        assert said(capsys, "add", path, data, code=2) == expected
        expected = f"{path}: no such store; 'pocketfed-device data add' makes one"
        assert said(capsys, "info", path, code=2) == expected
    said(capsys, "add", store, data, "--for", digits_bundle.path)
    np.savez(tmp_path / "other.npz", x=np.zeros((2, 3)), y=np.zeros(2))
    expected = f"{tmp_path / 'other.npz'}: array 'x' is float64[2, 3]; expected float32[n, 8, 8, 1]"
    assert said(capsys, "add", store, tmp_path / "other.npz", code=2) == expected
    expected = f"{tmp_path / 'other.npz'}: no store, or one whose beginning is damaged; name one, or add it anew"
    assert said(capsys, "info", tmp_path / "other.npz", code=4) == expected
    assert len(load_examples(store, digits_bundle.manifest)) == 5
    line = said(capsys, "expire", store, "--max-bytes", "1K", code=2)
    assert line == f"{store}: a limit of 1000 bytes; expected at least 106496"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "s", "f", "--max-age", "30"], "argument --max-age: 30 is not a time such as 45s, 90m, 12h or 30d"),
        (["add", "s", "f", "--max-age", "xd"], "argument --max-age: x is not a number of seconds above 0"),
        (["add", "s", "f", "--max-bytes", "M"], "argument --max-bytes:  is not a whole number of at least 1"),
        (["expire", "s", "--max-examples", "0"], "argument --max-examples: 0 is not a whole number of at least 1"),
        (["delete", "s"], "one of the arguments --id --older-than --all is required"),
        (["delete", "s", "--all", "--id", "1"], "argument --id: not allowed with argument --all"),
        ([], "the following arguments are required: ACTION"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(arguments: list[str], message: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {message}")


@pytest.mark.parametrize("action", ["add", "info", "delete", "expire"])
def test_help(action: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", action, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert text.isascii()
    assert "exit codes: 0 done, 1 a check failed" in " ".join(text.split())
