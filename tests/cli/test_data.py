"""`pocketfed data`: what it prints, draws and writes, and what it says of wrong input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.main import main
from tff_sim import datasets
from tff_sim.experiments.data_settings import Data
from tff_sim.partition import deal, partition, scheme
from tff_sim.population import Growth

PNG = b"\x89PNG\r\n\x1a\n"


def _json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def _line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    return line.removeprefix("pocketfed: ")


def test_info_prints_counts_and_draws_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "digits.png"
    assert main(["data", "info", "--partition", "shards", "--clients", "20", "--out", str(picture)]) == 0
    output = capsys.readouterr().out
    for text in ("digits, shards (shards_per_client 2), seed 0", "1,437", "71 to 72, median 72", "test examples"):
        assert text in output
    assert picture.read_bytes().startswith(PNG)


def test_info_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    data = datasets.load("digits")
    found = _json(["data", "info", "--partition", "dirichlet", "--alpha", "0.3", "--clients", "9"], capsys)
    dealt = deal(data, scheme("dirichlet", alpha=0.3), 9, 0)
    assert found["partition"] == dealt.to_json()
    assert (
        found
        | dealt.summary(data.train.y).to_json()
        | {
            "labels": found["labels"],
            "labels_per_client": found["labels_per_client"],
        }
        == found
    )
    assert found["labels"] == np.bincount(data.train.y).tolist()
    assert found["test_examples"] == 360


def test_a_partition_is_saved_and_shared_with_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, folder, packed = tmp_path / "p.npz", tmp_path / "devices", tmp_path / "packed"
    made = ["--partition", "log-normal", "--sigma", "0.5", "--clients", "6", "--seed", "3"]
    assert main(["data", "partition", *made, "--out", str(path)]) == 0
    output = capsys.readouterr().out
    assert f"saved in {path}" in output.replace("\n", "")
    assert "log-normal (sigma 0.5), seed 3" in output
    shared = ["--partition-file", str(path)]
    assert main(["data", "export", *shared, "--out", str(folder)]) == 0
    assert capsys.readouterr().out == f"6 clients and 360 test examples in {folder}\n"
    found = _json(["data", "export", *shared, "--out", str(packed), "--packed"], capsys)
    assert (found["clients"], found["packed"]) == (6, True)
    dealt = deal(datasets.load("digits"), scheme("log-normal", sigma=0.5), 6, 3)
    for number, name in enumerate(dealt.names):
        with np.load(folder / f"{name}.npz") as arrays:
            np.testing.assert_array_equal(arrays["y"], datasets.load("digits").train.y[dealt.hand(number)])
    for arguments in (["npz", "--data-dir", str(folder)], ["packed", "--data-dir", str(packed)], ["digits", *shared]):
        info = _json(["data", "info", "--dataset", *arguments], capsys)
        assert (info["clients"], info["examples"], info["largest"]) == (6, 1437, int(dealt.sizes.max()))


def test_partition_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(["data", "partition", "--clients", "7", "--out", str(tmp_path / "p.npz")], capsys)
    assert found["file"] == str(tmp_path / "p.npz")
    assert found["partition"]["scheme"] == {"name": "iid"}
    assert (found["smallest"], found["largest"]) == (205, 206)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alpha", "0.5"], "--alpha is a parameter of a partition: name that with --partition"),
        (["--partition", "iid", "--alpha", "0.5"], "partition 'iid' has no --alpha: leave it out"),
        (
            ["--partition", "by-hand"],
            "unknown partition 'by-hand'; known partitions: iid, shards, dirichlet, log-normal, power-law, natural",
        ),
        (["--partition", "dirichlet", "--alpha", "0"], "--alpha should be a finite number of at least 1e-06, not 0.0"),
        (
            ["--partition", "natural"],
            "data set 'digits' has no natural clients: choose another --partition than 'natural'",
        ),
        (["--clients", "0"], "can't deal 1437 examples to 0 clients by 'iid': change --clients"),
        (
            ["--partition-file", "p.npz", "--clients", "3"],
            "p.npz: a partition's file says who has what: leave out --partition, its parameters and --clients",
        ),
        (
            ["--partition-file", "nowhere.npz"],
            "nowhere.npz: no such file; expected a partition that 'pocketfed data partition' wrote",
        ),
        (
            ["--dataset", "leaf"],
            "data set 'leaf': --data-dir is missing; it names the folder with LEAF's train and test",
        ),
        (
            ["--out", "nowhere/x.png"],
            "nowhere/x.png: can't write it: No such file or directory; change --out",
        ),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _line(["data", "info", *arguments], capsys) == message


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([[]], [1], "user 'b': 'x' is neither text nor rows of as many finite numbers; expected one of them"),
        ([[1e300]], [1], "user 'b': 'x' holds a number that float32 has not; expected at most 3.4e38 either way"),
        (["a\ud800"], ["b"], "user 'b': a text holds U+D800, half a surrogate pair; expected whole characters"),
        (
            ["a"],
            ["b"],
            "user 'b': x is int32[1, 1], of user 'a' float32[1, 1]; expected the same type and shape in all users",
        ),
    ],
)
def test_leaf_s_users_that_are_no_data_are_one_line(
    x: Any, y: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        data = {"a": {"x": [[1]], "y": [1]}, "b": {"x": x, "y": y}}
        content = {"users": ["a", "b"], "num_samples": [1, 1], "user_data": data}
        (tmp_path / part / "all.json").write_text(json.dumps(content))
    line = _line(["data", "info", "--dataset", "leaf", "--data-dir", str(tmp_path)], capsys)
    assert line == f"{tmp_path / 'train' / 'all.json'}: {message}"


def test_export_into_a_folder_with_something_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("mine")
    assert _line(["data", "export", "--out", str(tmp_path)], capsys) == (
        f"{tmp_path}: not empty, so that nothing is mixed or overwritten; choose another --out"
    )
    assert _line(["data", "export", "--packed", "--out", str(tmp_path)], capsys) == (
        f"{tmp_path}: exists already, so that it is not overwritten; choose another folder"
    )


def test_settings_become_a_spec() -> None:
    given = Data(partition="shards", clients=5, shards_per_client=3, present=0.5, deleted=0.1)
    spec = given.spec(seed=4)
    assert (spec.scheme, spec.clients, spec.seed) == (scheme("shards", shards_per_client=3), 5, 4)
    assert spec.growth == Growth(present=0.5, added=0.0, deleted=0.1)
    plain = Data().spec(0)
    assert (plain.scheme, plain.growth, plain.augment) == (None, None, False)


def test_changes_are_of_experiments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "info", "--added", "0.1"]) == 2
    assert "No such option '--added'" in capsys.readouterr().err


def test_the_older_way_to_deal_gives_the_exported_hands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "export", "--partition", "shards", "--clients", "4", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    for name, hand in partition(datasets.load("digits").train, "shards", 4, 0).items():
        with np.load(tmp_path / f"{name}.npz") as arrays:
            np.testing.assert_array_equal(arrays["x"], hand.x)
