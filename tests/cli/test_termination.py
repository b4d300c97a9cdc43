"""SIGTERM and Ctrl-C end a command, even where the exception that they raise gets lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from cli import termination
from cli.main import app, main
from cli.progress import round_progress
from cli.termination import TerminatedError, terminable

_ENDS = [(signal.SIGTERM, 143, "pocketfed: terminated"), (signal.SIGINT, 130, "pocketfed: interrupted")]


def _at_step_2(happens: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of three steps, with that in the second."""

    @click.command()
    def work() -> None:
        with round_progress("working", 3) as progress:
            progress(1, "")
            happens()
            progress(2, "")
            progress(3, "")

    monkeypatch.setitem(app.commands, "work", work)


@pytest.mark.parametrize(("number", "code", "message"), _ENDS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_after_a_finalizer_that_dropped_it(
    number: signal.Signals,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Signalling:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            for _ in range(10):  # Python's handler runs in here
                pass

    def forget() -> None:
        Signalling()

    _at_step_2(forget, monkeypatch)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert main(["work"]) == code
    assert [line.strip() for line in capsys.readouterr().err.splitlines() if line] == [
        "working 1/3",
        "working 2/3",
        message,
    ]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize(("number", "code", "message"), _ENDS)
def test_when_compiled_code_makes_another_error_of_it(
    number: signal.Signals,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def signalled() -> None:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        except BaseException:
            raise TypeError("an attribute is missing") from None

    _at_step_2(signalled, monkeypatch)
    assert main(["work"]) == code
    assert [line.strip() for line in capsys.readouterr().err.splitlines() if line] == ["working 1/3", message]


def test_an_error_without_a_signal_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a command that was terminated."""
    _at_step_2(lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)
    assert main(["work"]) == 143

    def fails() -> None:
        raise TypeError("an attribute is missing")

    _at_step_2(fails, monkeypatch)
    with pytest.raises(TypeError, match="an attribute is missing"):
        main(["work"])


def test_sigterm_counts_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once it is `timeout`'s, which sends it to the process and to its group."""
    monkeypatch.setattr(termination, "_ONE_ASKING", 0.2)
    with pytest.raises(TerminatedError), terminable():
        with pytest.raises(TerminatedError):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.25)
        os.kill(os.getpid(), signal.SIGTERM)


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    """As of a program that a shell's script starts in the background."""
    program = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
from cli.termination import terminable
with terminable():
    os.kill(os.getpid(), signal.SIGINT)
    print("goes on")
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2]
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "goes on\n", "")
