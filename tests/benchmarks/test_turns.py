"""Two processes that take steps by turns, and what is said of one that fails."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.export import PYTORCH
from benchmarks.memory import peak_mb
from benchmarks.result import Result
from benchmarks.turns import Plan, Side, by_turns
from device_runtime.bundle import Bundle

PYTHON = Path(sys.executable)


class _Scripted:
    """A side whose turns are known beforehand."""

    def __init__(self, turns: Sequence[list[float]], log: list[str], name: str) -> None:
        self._turns, self._log, self._name = iter(turns), log, name

    def turn(self, steps: int) -> list[float]:
        self._log.append(self._name)
        seconds = next(self._turns)
        assert len(seconds) == steps
        return seconds


def test_turns_alternate_and_the_first_step_of_each_is_left_out() -> None:
    log: list[str] = []
    ours = _Scripted([[9.0, 0.003, 0.002, 0.004], [9.0, 0.005, 0.005, 0.005]], log, "ours")
    theirs = _Scripted([[0.0, 0.008, 0.009, 0.007], [0.0, 0.006, 0.001, 0.007]], log, "theirs")
    found = by_turns(cast(Side, ours), cast(Side, theirs), Plan(turns=2, steps=3))
    assert found == pytest.approx((3.0, 6.0))
    assert log == ["ours", "theirs", "ours", "theirs"]


def test_a_device_takes_steps_in_a_process_of_its_own(digits_bundle: Bundle) -> None:
    with (
        Side(PYTHON, "device", digits_bundle.path, 1, 10) as ours,
        Side(PYTHON, "tensorflow", "digits_mlp", 1, 10) as theirs,
    ):
        assert all(0 < milliseconds < 10_000 for milliseconds in by_turns(ours, theirs, Plan(2, 3)))


@pytest.mark.skipif(not PYTORCH.exists(), reason="PyTorch's environment is missing: make bench-setup")
@pytest.mark.parametrize("model", ["mnist_2nn", "mnist_cnn"])
def test_pytorch_takes_steps_in_its_own_environment(model: str) -> None:
    with Side(PYTORCH, "pytorch", model, 1, 10) as side:
        assert len(side.turn(3)) == 3


def test_a_process_that_fails_is_named_with_the_last_it_said(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError) as caught:
        Side(PYTHON, "device", tmp_path / "none", 1, 10)
    told = str(caught.value)
    assert told.startswith("benchmark process device ended with code 1: ")
    assert str(tmp_path / "none") in told
    assert "\n" not in told


def test_a_process_that_ended_between_turns_is_an_error(digits_bundle: Bundle) -> None:
    with Side(PYTHON, "device", digits_bundle.path, 1, 10) as side:
        side._process.kill()
        side._process.wait()
        with pytest.raises(BenchmarkError, match="benchmark process device ended with code -9: "):
            side.turn(1)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")
def test_the_peak_is_the_program_s_alone() -> None:
    small = peak_mb([sys.executable, "-S", "-c", "pass"])
    large = peak_mb([sys.executable, "-S", "-c", "b'x' * 100_000_000"])
    assert 2 < small < 60  # this process, with TensorFlow in it, has many times as much
    assert large == pytest.approx(small + 100, abs=5)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")
def test_memory_of_a_program_that_fails() -> None:
    with pytest.raises(BenchmarkError, match=r"ended with code 1: ValueError: no$"):
        peak_mb([sys.executable, "-S", "-c", "raise ValueError('no')"])


def test_a_result_s_ratio_is_value_over_reference() -> None:
    told = Result("n", 3.0, "ms", "other", 2.0).to_json()
    assert told == {
        "name": "n", "value": 3.0, "unit": "ms", "reference": "other", "reference_value": 2.0, "ratio": 1.5
    }  # fmt: skip
