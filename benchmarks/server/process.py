"""Servers as processes of their own, and what they take."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.server.http import request_head
from device_runtime.transport import Caller
from tff_sim.child_process import dies_with_parent

_PAGE_UNIT = 1024  # /proc/PID/status counts in KiB


@dataclass(frozen=True)
class Serving:
    """A server that runs.

    Attributes:
        url: where.
        pid: its process.
        folder: its own, with database, spool and keys.
    """

    url: str
    pid: int
    folder: Path

    def key(self, role: str) -> str:
        """The key of its operator or viewer."""
        return (self.folder / f"{role}.key").read_text().strip()

    def viewer_asks(self, path: str) -> bytes:
        """The request of a viewer for what is at a path."""
        return request_head("GET", path, {"Authorization": Caller("viewer", self.key("viewer")).authorization})

    @property
    def peak_mb(self) -> float:
        """The most memory that was resident at once, in MB of 10⁶ bytes."""
        return self._memory("VmHWM")

    @property
    def memory_mb(self) -> float:
        """Memory that is resident now, in MB of 10⁶ bytes."""
        return self._memory("VmRSS")

    def _memory(self, name: str) -> float:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * _PAGE_UNIT / 1e6


@contextmanager
def server(bundle: Path, folder: Path, options: Sequence[str]) -> Iterator[Serving]:
    """`pocketfed serve` with these options, on a free port, with its files in `folder`.

    It takes any number of requests a second: here all devices have one address, and are in a hurry.
    """
    command = [str(Path(sys.executable).with_name("pocketfed")), "serve", str(bundle.resolve()), "--port", "0"]
    any_rate = [word for what in ("address", "device", "failure") for word in (f"--{what}-rate", "0")]
    with _started([*command, *any_rate, *options], folder) as serving:
        yield serving


@contextmanager
def reference(folder: Path) -> Iterator[Serving]:
    """`benchmarks.server.reference`, with its files in `folder`."""
    with _started([sys.executable, "-m", "benchmarks.server.reference"], folder) as serving:
        yield serving


@contextmanager
def _started(command: Sequence[str], folder: Path) -> Iterator[Serving]:
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "server.log").open("w") as log,
        subprocess.Popen(
            dies_with_parent(command),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("listening on "):
                raise BenchmarkError(f"the server did not come up: {(folder / 'server.log').read_text()[-500:]}")
            yield Serving(line.removeprefix("listening on ").strip(), process.pid, folder)
        finally:
            process.terminate()
