"""Progress: a bar on a terminal, a line a step elsewhere."""

from __future__ import annotations

import pytest

from cli.progress import round_progress


def _two_rounds() -> None:
    with round_progress("simulating", 2) as progress:
        progress(1, "loss 0.5000")
        progress(2, "loss 0.2500")


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    _two_rounds()
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "simulating 1/2  loss 0.5000\nsimulating 2/2  loss 0.2500\n"


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    _two_rounds()
    output = capsys.readouterr()
    assert output.out == ""
    assert "simulating" in output.err and "2/2" in output.err and "loss 0.2500" in output.err
    assert "\x1b[" in output.err and "━" in output.err
