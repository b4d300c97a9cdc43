"""A fleet of real processes that can't do its work: each failure says which log to read, and leaves no process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cli.fleet import FleetResult, run_fleet
from device_runtime.bundle import Bundle
from device_runtime.errors import NetworkError
from device_runtime.examples import Examples

ONE_DEVICE = ["--goal", "1", "--over-selection", "1", "--retry-seconds", "0.1", "--rounds", "1", "--seed", "3"]


@pytest.fixture
def run(
    digits_bundle: Bundle, digits_examples: Callable[[int, int], Examples], tmp_path: Path
) -> Callable[..., FleetResult]:
    """`run(arguments, labels=…, timeout=…)`: a fleet of one device in `tmp_path`."""

    def start(arguments: list[str], labels: object = None, timeout: float = 300.0) -> FleetResult:
        examples = digits_examples(7, 0)
        data = tmp_path / "device-0.npz"
        np.savez(data, x=examples.x, y=np.asarray(examples.y if labels is None else labels))
        tensors = digits_bundle.manifest.tensors
        return run_fleet(digits_bundle.path, tensors, arguments, "digits_mlp", [data], tmp_path, timeout=timeout)

    return start


def test_a_fleet_of_one_commits_its_round(
    run: Callable[..., FleetResult], processes_of: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    result = run(ONE_DEVICE)
    (committed,) = result.rounds
    assert (committed.number, committed.clients, committed.examples) == (1, 1, 7)
    assert result.upload_bytes > 0 and result.download_bytes > 0
    assert processes_of(tmp_path) == []


def test_a_server_that_does_not_come_up(
    run: Callable[..., FleetResult], processes_of: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    with pytest.raises(NetworkError) as caught:
        run(["--codec", "zip"])
    log = tmp_path / "server.log"
    assert str(caught.value) == f"the server did not come up; {log} says why"
    assert log.read_text().startswith("pocketfed: unknown codec 'zip'")
    assert processes_of(tmp_path) == []


def test_a_device_that_fails(
    run: Callable[..., FleetResult], processes_of: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    with pytest.raises(NetworkError) as caught:
        run(ONE_DEVICE, labels=np.full(7, 10, np.int32))
    assert str(caught.value) == f"a device process failed; the logs in {tmp_path} say why"
    assert "expected 0 to 9" in (tmp_path / "device-0.log").read_text()
    assert processes_of(tmp_path) == []


def test_a_task_that_takes_too_long(
    run: Callable[..., FleetResult], processes_of: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    with pytest.raises(NetworkError) as caught:
        run(["--goal", "2", "--over-selection", "1", "--minimum", "2", "--rounds", "1"], timeout=3.0)
    assert str(caught.value) == f"the task was not complete after 3 seconds; the logs are in {tmp_path}"
    assert processes_of(tmp_path) == []
