"""``pocketfed-device conditions``, and the options that `run` shares with it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from device_runtime.cli import main
from device_runtime.commands.conditions import NAMES, add_conditions, conditions
from device_runtime.eligibility import conditions as eligibility
from device_runtime.eligibility.by_app import ConditionsFile
from device_runtime.eligibility.conditions import Measured
from device_runtime.errors import InputError

Capture = pytest.CaptureFixture[str]


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_conditions(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "required"),
    [
        ([], []),
        (["--require", "none"], []),
        (["--require", "all"], list(NAMES)),
        (["--require", "cool,charging"], ["charging", "cool"]),
        (["--require", "charging", "--max-celsius", "60"], ["charging", "cool"]),
        (["--max-load", "0.5"], ["idle"]),
    ],
    ids=" ".join,
)
def test_what_is_required(arguments: list[str], required: list[str]) -> None:
    measured = conditions(options(*arguments))
    assert isinstance(measured, Measured)
    assert [probe.name for probe in measured._probes] == required
    if not required:
        assert measured.unmet() is None


def test_the_names_are_the_same_everywhere() -> None:
    assert NAMES == eligibility.NAMES


def test_an_app_s_file_stands_for_all(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"charging": true}')
    asked = conditions(options("--conditions", str(path)))
    assert isinstance(asked, ConditionsFile)
    assert asked.unmet() == "in use"
    assert conditions(options("--conditions", str(path), "--require", "charging")).unmet() is None
    with pytest.raises(InputError) as caught:
        conditions(options("--conditions", str(path), "--max-celsius", "60"))
    expected = "--max-celsius and --max-load are for what is measured; with --conditions the app decides"
    assert str(caught.value) == expected


def run(capsys: Capture, *arguments: str) -> tuple[int, list[str]]:
    code = main(["conditions", *arguments])
    captured = capsys.readouterr()
    assert captured.err == ""
    return code, captured.out.splitlines()


def test_a_table_of_what_is_measured(capsys: Capture) -> None:
    code, lines = run(capsys, "--require", "none")
    assert (code, lines[-1], [line.split()[0] for line in lines[:4]]) == (0, "may train", list(NAMES))
    assert all(line.endswith("(not required)") for line in lines[:4])
    code, lines = run(capsys, "--max-celsius", "0.001", "--require", "none", "--unknown", "wait")
    assert code == 1
    assert lines[-1].startswith(("may not train: too hot: ", "may not train: the temperature is not known"))


def test_a_table_of_what_an_app_says(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"idle": true, "charging": false, "cool": true}')
    assert run(capsys, "--conditions", str(path), "--require", "charging,idle") == (
        1,
        [
            "idle       yes      said",
            "charging   no       said",
            "unmetered  unknown  not said (not required)",
            "cool       yes      said (not required)",
            "may not train: on battery",
        ],
    )
    path.unlink()
    code, lines = run(capsys, "--conditions", str(path))
    assert (code, lines[-1]) == (1, f"may not train: {path}: No such file or directory")


def test_json(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"idle": true, "charging": true, "unmetered": true, "cool": true}')
    code, (line,) = run(capsys, "--conditions", str(path), "--json")
    report: dict[str, Any] = json.loads(line)
    assert (code, report["eligible"], report["reason"]) == (0, True, None)
    assert report["conditions"]["idle"] == {"value": "said", "met": True, "required": True}
    code, (line,) = run(capsys, "--json")
    report = json.loads(line)
    assert (code == 0) is report["eligible"] is (report["reason"] is None)
    assert all(report["conditions"][name]["required"] for name in NAMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--require", "idle,rich"], f"--require: idle,rich is not all, none, or some of {','.join(NAMES)}"),
        (["--max-celsius", "hot"], "--max-celsius: hot is not a number above 0"),
        (["--max-load", "0"], "--max-load: 0 is not a number above 0"),
    ],
    ids=["names", "celsius", "load"],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["conditions", *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: argument {message}")


def test_help(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["conditions", "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.isascii()
