"""A fleet of real processes that can't do its work: each failure says which log to read, and leaves no process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cli import fleet
from cli.fleet import FleetResult, run_fleet
from device_runtime.bundle import Bundle
from device_runtime.codec import encoded_size
from device_runtime.commands.options import TRUSTED_KEYS
from device_runtime.errors import NetworkError
from device_runtime.examples import Examples
from device_runtime.weights import dump_weights

Run = Callable[..., FleetResult]
ProcessesOf = Callable[[Path], dict[int, str]]

ONE_DEVICE = ["--goal", "1", "--over-selection", "1", "--retry-seconds", "0.1", "--rounds", "1", "--seed", "3"]
NEVER_ENDING = ["--goal", "2", "--minimum", "2", "--rounds", "1"]  # for the one device that there is

RUN_FLEET = """
import sys
from pathlib import Path
from cli.fleet import run_fleet
from device_runtime.bundle import open_bundle
bundle, folder = open_bundle(Path(sys.argv[1])), Path(sys.argv[2])
run_fleet(bundle.path, bundle.manifest.tensors, sys.argv[3:], "digits_mlp", [folder / "device-0.npz"], folder)
"""


@pytest.fixture
def data(digits_examples: Callable[[int, int], Examples], tmp_path: Path) -> Path:
    """The file of the one device's examples, seven of them."""
    examples = digits_examples(7, 0)
    np.savez(tmp_path / "device-0.npz", x=examples.x, y=examples.y)
    return tmp_path / "device-0.npz"


@pytest.fixture
def run(digits_bundle: Bundle, data: Path, tmp_path: Path) -> Run:
    """`run(arguments, timeout=…)`: a fleet of one device in `tmp_path`."""

    def start(arguments: list[str], timeout: float = 300.0) -> FleetResult:
        tensors = digits_bundle.manifest.tensors
        return run_fleet(digits_bundle.path, tensors, arguments, "digits_mlp", [data], tmp_path, timeout=timeout)

    return start


def _within_a_minute(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60
    while not holds() and time.monotonic() < end:
        time.sleep(0.1)
    return holds()


def test_a_fleet_of_one_commits_its_round(run: Run, processes_of: ProcessesOf, tmp_path: Path) -> None:
    result = run(ONE_DEVICE)
    (committed,) = result.rounds
    assert (committed.number, committed.clients, committed.examples) == (1, 1, 7)
    assert result.upload_bytes > 0 and result.download_bytes > 0
    told = (tmp_path / "server.log").read_text()
    assert re.fullmatch(rf"\d\d:\d\d:\d\d round 1 committed: 1 reports, loss {committed.train_loss:.4g}\n", told)
    assert processes_of(tmp_path) == {}


@pytest.mark.parametrize("downlink", ["f16", "q4"])
def test_encoded_weights_are_all_that_a_device_fetches_after_its_first_round(
    run: Run, digits_bundle: Bundle, tmp_path: Path, downlink: str
) -> None:
    rounds = 4
    result = run([*ONE_DEVICE, "--rounds", str(rounds), "--codec", "q4", "--downlink", downlink])
    manifest = digits_bundle.manifest
    bundle = sum(entry.size for entry in manifest.files.values()) + len(manifest.dump())
    encoded = encoded_size(manifest.tensors, downlink)
    # The first round starts from the bundle's own weights.
    assert result.download_bytes == bundle + (rounds - 1) * encoded
    assert result.upload_bytes == rounds * encoded_size(manifest.tensors, "q4", ["loss"])
    (held,) = (tmp_path / "device-0").rglob("weights/*.safetensors")
    assert held.read_bytes() == dump_weights(result.rounds[-2].weights, manifest.tensors)


def test_the_keys_that_the_user_trusts_are_not_for_a_fleet_of_the_user_s_own(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUSTED_KEYS, str(tmp_path / "release.key.pub"))
    assert len(run(ONE_DEVICE).rounds) == 1


def test_a_server_that_does_not_come_up(run: Run, processes_of: ProcessesOf, tmp_path: Path) -> None:
    with pytest.raises(NetworkError) as caught:
        run(["--codec", "zip"])
    log = tmp_path / "server.log"
    assert str(caught.value) == f"the server did not come up; {log} says why"
    assert log.read_text().startswith("pocketfed: unknown codec 'zip'")
    assert processes_of(tmp_path) == {}


def test_a_server_that_ends_too_early(run: Run, processes_of: ProcessesOf, tmp_path: Path) -> None:
    def servers() -> list[int]:
        return [pid for pid, line in processes_of(tmp_path).items() if " serve " in line]

    with ThreadPoolExecutor(1) as threads:
        result = threads.submit(run, NEVER_ENDING)
        assert _within_a_minute(lambda: len(processes_of(tmp_path)) == 2)
        for server in servers():
            os.kill(server, signal.SIGKILL)
        error = result.exception(120)
    assert isinstance(error, NetworkError)
    assert str(error).startswith(f"the server does not answer any more; {tmp_path / 'server.log'} says why (http://")
    assert processes_of(tmp_path) == {}


def test_a_device_that_fails(run: Run, processes_of: ProcessesOf, data: Path, tmp_path: Path) -> None:
    with np.load(data) as arrays:
        x = arrays["x"]
    np.savez(data, x=x, y=np.full(7, 10, np.int32))
    with pytest.raises(NetworkError) as caught:
        run(ONE_DEVICE)
    assert str(caught.value) == f"a device process failed; the logs in {tmp_path} say why"
    assert "expected 0 to 9" in (tmp_path / "device-0.log").read_text()
    assert processes_of(tmp_path) == {}


def test_a_task_that_takes_too_long(run: Run, processes_of: ProcessesOf, tmp_path: Path) -> None:
    with pytest.raises(NetworkError) as caught:
        run(NEVER_ENDING, timeout=3.0)
    assert str(caught.value) == f"the task was not complete after 3 seconds; the logs are in {tmp_path}"
    assert processes_of(tmp_path) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_server_and_devices_die_with_a_parent_that_is_killed(
    digits_bundle: Bundle, data: Path, processes_of: ProcessesOf, tmp_path: Path
) -> None:
    arguments = [str(digits_bundle.path), str(tmp_path), *NEVER_ENDING]
    parent = subprocess.Popen([sys.executable, "-c", RUN_FLEET, *arguments], stdin=subprocess.DEVNULL)
    try:
        assert _within_a_minute(lambda: len(processes_of(tmp_path)) == 3)  # with the parent itself
    finally:
        parent.kill()
        parent.wait()
    assert _within_a_minute(lambda: not processes_of(tmp_path))


def test_abandoned_rounds_and_rounds_without_a_loss_are_no_obstacle(tmp_path: Path) -> None:
    committed = {"task": "training", "outcome": "committed", "loss": None}
    abandoned = committed | {"outcome": "abandoned"}
    evaluated = committed | {"task": "evaluation", "loss": 0.5}
    history = [committed, abandoned, committed | {"loss": 0.25}, evaluated]
    answers = [
        {"committed_rounds": 1, "complete": False, "history": [committed, abandoned]},
        {"committed_rounds": 2, "complete": True, "history": history},
    ]
    told: list[tuple[int, str]] = []
    status = fleet._wait_for_completion(
        lambda path: json.dumps(answers.pop(0)).encode(), [], tmp_path, lambda *figures: told.append(figures), 60
    )
    assert told == [(1, ""), (2, "loss 0.2500")]
    assert status["complete"]
