"""`pocketfed demo`, whole: TFF's worker, export, parity, a server and five device processes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cli.demo import _Demonstration
from device_runtime.bundle import Bundle
from device_runtime.errors import CheckFailedError
from export import parity
from export.inference import InferenceReport
from export.parity import Difference, ParityReport

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_federated") is None, reason="simulation is not available on this machine"
)

KEYS = {"simulated_accuracy", "fleet_accuracy", "rounds", "upload_bytes", "upload_bytes_float32", "seconds"}


class _Run:
    """One finished demo: what it said, and what it wrote."""

    def __init__(self, out: Path) -> None:
        self.out = out
        # No such warnings filter as the tests have: what a user would see is part of what is tested.
        environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
        self.process = subprocess.run(
            [sys.executable, "-m", "cli.main", "demo", "--out", str(out), "--seed", "1", "--json"],
            capture_output=True, stdin=subprocess.DEVNULL, text=True, timeout=900, env=environment,
        )  # fmt: skip
        assert self.process.returncode == 0, self.process.stderr
        self.printed: dict[str, Any] = json.loads(self.process.stdout)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Run]:
    yield _Run(tmp_path_factory.mktemp("demo") / "out")


def test_both_simulation_and_fleet_learn_the_digits(demo: _Run) -> None:
    assert demo.printed["simulated_accuracy"] >= 0.94
    assert demo.printed["fleet_accuracy"] >= 0.94
    assert (demo.printed["simulated_rounds"], demo.printed["rounds"]) == (20, 10)
    # The fleet's own simulation rounds with the same random numbers. It differs by the last bits of float32, which turn
    # a rounding of q8 here and there, and by what ten rounds make of it, where a ReLU's input lies near zero. Seeds 0
    # to 3 ended between 0.009 and 0.042.
    assert abs(demo.printed["fleet_accuracy"] - demo.printed["fleet_simulated_accuracy"]) < 0.02
    assert 0 < demo.printed["fleet_difference"] < 0.1


def test_the_summary_is_what_other_programs_rely_on(demo: _Run) -> None:
    assert json.loads((demo.out / "summary.json").read_text()) == demo.printed
    assert set(demo.printed) >= KEYS
    assert demo.printed["upload_bytes"] < 0.26 * demo.printed["upload_bytes_float32"]
    assert demo.printed["parity"]["ok"] is True


def test_progress_is_told_and_nothing_else(demo: _Run) -> None:
    lines = demo.process.stderr.splitlines()
    assert [line[:3] for line in lines if line[1:2] == "/"] == ["1/4", "2/4", "3/4", "4/4"]
    rounds = ("simulated, 20 clients ", "simulated, 5 devices ", "fleet of 5 devices ")
    rest = [line for line in lines if line[1:2] != "/" and not line.startswith(rounds)]
    assert rest == []


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_the_report_holds_its_picture_and_asks_for_nothing_else(demo: _Run) -> None:
    reader = _Reader()
    page = (demo.out / "report.html").read_text(encoding="utf-8")
    reader.feed(page)
    assert reader.tags.count("svg") == 1
    assert reader.tags.count("tr") == 4  # the heading and three curves
    assert all(address.startswith("#") for address in reader.addresses)
    assert f"{demo.printed['fleet_accuracy']:.2%}" in page
    assert (demo.out / "accuracy.png").read_bytes().startswith(b"\x89PNG")


INFERENCE = InferenceReport("float32", 1, True, 0.0, "accuracy", 1.0, 1.0)


def test_parity_that_fails_ends_the_demo_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, digits_bundle: Bundle
) -> None:
    report = ParityReport(4, (Difference("loss", 1.0, 1.0),), "hidden/bias", 4, (), INFERENCE)
    demonstration = _Demonstration(tmp_path, 0)
    monkeypatch.setattr(parity, "check_parity", lambda bundle, seed: report)
    with pytest.raises(CheckFailedError) as caught:
        demonstration.check_parity(digits_bundle)
    assert str(caught.value) == "parity fails: hidden/bias differs first, at step 4"
    assert capsys.readouterr().out == ""


def test_no_process_is_left(demo: _Run, processes_of: Callable[[Path], dict[int, str]]) -> None:
    assert processes_of(demo.out) == {}
