"""A server and devices as real processes on this machine, and the server's account of their rounds."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.fleet_server import FleetServer
from device_runtime.commands.options import TRUSTED_KEYS
from device_runtime.errors import NetworkError
from device_runtime.messages import STATUS, weights_path
from device_runtime.tensors import TensorSpec, Weights
from device_runtime.weights import load_weights
from tff_sim.child_process import dies_with_parent

_START_SECONDS = 120.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.25
_MOST_ROUNDS = 1000  # that a server tells of at once


@dataclass(frozen=True)
class CommittedRound:
    """A committed round as the server tells it, with the weights that it committed."""

    number: int
    weights: Weights
    train_loss: float | None
    clients: int
    examples: int


@dataclass(frozen=True)
class FleetResult:
    """All committed rounds; bytes of all reports, and of all bundles and weights that devices fetched."""

    rounds: tuple[CommittedRound, ...]
    upload_bytes: int
    download_bytes: int


def command(name: str) -> str:
    """Path of a command of this project, in the environment that this process runs in."""
    return str(Path(sys.executable).with_name(name))


@contextlib.contextmanager
def server_process(arguments: Sequence[str], log: Path) -> Iterator[str]:
    """``pocketfed serve`` with these arguments, on a free port of 127.0.0.1; yields its URL and ends it after.

    Raises:
        NetworkError: it did not come up; the message names its log.
    """
    with log.open("w") as stderr:
        process = subprocess.Popen(
            dies_with_parent([command("pocketfed"), "serve", *arguments, "--port", "0", "--open-enrolment"]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        try:
            yield _announced_url(process, log)
        finally:
            _stop([process])


@contextlib.contextmanager
def device_processes(
    url: str, population: str, data: Sequence[Path], folder: Path
) -> Iterator[list[subprocess.Popen[str]]]:
    """A ``pocketfed-device run`` for each file of examples; the file's stem is the client's name."""
    processes: list[subprocess.Popen[str]] = []
    # The bundle was made on this machine a moment ago: the keys that its user trusts are for bundles from elsewhere. So
    # is what is installed for this user.
    environment = {name: value for name, value in os.environ.items() if name != TRUSTED_KEYS}
    try:
        for path in data:
            home = str(folder / path.stem)
            with (folder / f"{path.stem}.log").open("w") as log:
                arguments = ["--server", url, "--population", population, "--client", path.stem, "--data", str(path)]
                processes.append(
                    subprocess.Popen(
                        dies_with_parent(
                            [command("pocketfed-device"), "run", *arguments, "--cache", home, "--root", home]
                        ),
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        text=True,
                    )
                )
        yield processes
    finally:
        _stop(processes)


def run_fleet(
    bundle: Path,
    tensors: Sequence[TensorSpec],
    serve_arguments: Sequence[str],
    population: str,
    data: Sequence[Path],
    folder: Path,
    progress: Callable[[int, str], None] = lambda done, figures: None,
    timeout: float = 600.0,
) -> FleetResult:
    """Run a task with a limited number of rounds to its end, and fetch what was committed.

    Args:
        bundle: the bundle's folder.
        tensors: of its manifest.
        serve_arguments: further arguments of ``pocketfed serve``, ``--rounds`` among them.
        population: of the devices.
        data: a ``.npz`` file of examples for each device.
        folder: for the server's database, the devices' caches and all logs.
        progress: called with the number of committed rounds and a line of figures.
        timeout: seconds for the whole task.

    Raises:
        NetworkError: a process failed, or the time was up; the message names the log to read.
    """
    server_log = folder / "server.log"
    store = ["--db", f"sqlite:///{folder / 'server.db'}", "--spool", str(folder / "spool"), "--keys", str(folder)]
    with (
        server_process([str(bundle), *store, *serve_arguments], server_log) as url,
        device_processes(url, population, data, folder) as devices,
    ):
        get = _getter(FleetServer.of(url, folder, None, False), server_log)
        status = _wait_for_completion(get, devices, folder, progress, timeout)
        rounds = tuple(
            CommittedRound(
                entry["number"],
                load_weights(get(weights_path(entry["weights"])), tensors, f"weights {entry['weights']}"),
                entry["loss"],
                entry["clients"],
                entry["examples"],
            )
            for entry in _committed(status)
        )
        return FleetResult(rounds, status["counts"]["upload_bytes"], status["counts"]["download_bytes"])


def _getter(server: FleetServer, log: Path) -> Callable[[str], bytes]:
    def get(path: str) -> bytes:
        try:
            return server.bytes_of(path)
        except NetworkError as error:
            raise NetworkError(f"the server does not answer any more; {log} says why ({error})") from None

    return get


def _wait_for_completion(
    get: Callable[[str], bytes],
    devices: Sequence[subprocess.Popen[str]],
    folder: Path,
    progress: Callable[[int, str], None],
    timeout: float,
) -> dict[str, Any]:
    end = time.monotonic() + timeout
    told = 0
    while True:
        status: dict[str, Any] = json.loads(get(f"{STATUS}?history={_MOST_ROUNDS}"))
        if status["committed_rounds"] > told:
            told = status["committed_rounds"]
            loss = _committed(status)[-1]["loss"]
            progress(told, "" if loss is None else f"loss {loss:.4f}")
        if status["complete"]:
            return status
        if any(device.poll() not in (None, 0) for device in devices):
            raise NetworkError(f"a device process failed; the logs in {folder} say why")
        if time.monotonic() > end:
            raise NetworkError(f"the task was not complete after {timeout:.0f} seconds; the logs are in {folder}")
        time.sleep(_POLL_SECONDS)


def _committed(status: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in status["history"] if (entry["outcome"], entry["task"]) == ("committed", "training")]


def _announced_url(process: subprocess.Popen[str], log: Path) -> str:
    """The URL in the line that the server prints once it listens."""
    stdout = process.stdout
    assert stdout is not None  # it was started with a pipe
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.append(stdout.readline()), daemon=True)
    reader.start()
    reader.join(_START_SECONDS)
    if not lines or not lines[0].startswith("listening on "):
        raise NetworkError(f"the server did not come up; {log} says why")
    return lines[0].removeprefix("listening on ").strip()


def _stop(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
