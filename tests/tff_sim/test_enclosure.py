"""TFF's worker listens on all addresses; nobody but its socket's peers reaches it all the same."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tff_sim.hosts import Host, RunningWorker, worker_on, workers_at
from tff_sim import local_worker
from tff_sim.workers.addresses import Address
from tff_sim.workers.local import OPEN_WORKER
from tff_sim.workers.process import free_port
from tff_sim.workers.remote import remote_workers

POCKETFED = str(Path(sys.executable).with_name("pocketfed"))
# A user namespace whose root permits no network namespaces, as a container's settings may.
NO_NAMESPACES = ["unshare", "-Ur", "sh", "-c", 'echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"', "sh"]


def _namespaces_work() -> bool:
    """Whether this user may make one; if not, the worker can only warn."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    # Some systems give user namespaces without any rights, and then the loopback can't be used.
    return subprocess.run(["unshare", "-Urn", "ip", "link", "set", "lo", "up"], capture_output=True).returncode == 0


needs_namespaces = pytest.mark.skipif(not _namespaces_work(), reason="this system permits no user namespaces")


@pytest.fixture
def worker() -> Iterator[RunningWorker]:
    with worker_on(Host("127.0.0.1"), free_port()) as running:
        yield running


def _gone(pids: list[int]) -> bool:
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/exe").exists() for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@needs_namespaces
def test_a_worker_is_in_a_network_of_its_own_and_listens_where_it_is_bound(worker: RunningWorker) -> None:
    ours = Path("/proc/self/ns/net").readlink()
    assert Path(f"/proc/{worker.process.pid}/ns/net").readlink() == ours
    assert Path(f"/proc/{worker.program}/ns/net").readlink() != ours
    socket.create_connection((worker.address.host, worker.address.port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", worker.address.port))


@needs_namespaces
def test_the_local_worker_is_reached_by_a_socket_that_only_this_user_may_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("long" * 20)
    long.mkdir()
    for folder in (tmp_path, long):  # the second is too long for a socket's path
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        before = set(folder.iterdir())
        notices: list[str] = []
        with local_worker(notices.append):
            if folder == tmp_path:
                (made,) = set(folder.iterdir()) - before
                assert stat.S_IMODE(made.stat().st_mode) == 0o700
                assert stat.S_ISSOCK((made / "worker").stat().st_mode)
        assert notices == []
        assert set(folder.iterdir()) == before


@needs_namespaces
@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0"])
def test_where_no_namespace_is_permitted_the_worker_warns_and_serves(bind: str) -> None:
    port = free_port()
    process = subprocess.Popen(
        [*NO_NAMESPACES, POCKETFED, "worker", "--bind", bind, "--port", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"listening on {bind}:{port}\n"
        with remote_workers(workers_at([RunningWorker(Host("127.0.0.1"), process, Address("127.0.0.1", port))])):
            pass
    finally:
        process.terminate()
        _, warned = process.communicate(timeout=60)
    assert process.returncode == 0
    if bind == "0.0.0.0":
        assert warned == ""  # it was meant to be open
        return
    (line,) = warned.splitlines()
    start, end = line.split(": it listens on all addresses of this machine, port ")
    assert start == "warning: no network namespace for TFF's worker (No space left on device)"
    number, rest = end.split(", ", 1)
    assert rest == "without authentication"
    assert number.isdigit()


HOLD_A_WORKER = """
from tff_sim import local_worker
with local_worker():
    pass
"""


@needs_namespaces
@pytest.mark.parametrize(("known", "lines"), [("", 1), ("1", 0)])
def test_where_no_namespace_is_permitted_a_simulation_warns_unless_it_is_known(known: str, lines: int) -> None:
    run = subprocess.run(
        [*NO_NAMESPACES, sys.executable, "-W", "ignore", "-c", HOLD_A_WORKER],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=600,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", OPEN_WORKER: known},
    )
    assert run.returncode == 0, run.stderr
    told = [line for line in run.stderr.splitlines() if line.startswith("warning: ")]
    assert len(told) == lines


def test_the_worker_ends_with_the_command(worker: RunningWorker) -> None:
    assert worker.program
    processes = worker.processes
    assert len(processes) == 3
    worker.process.kill()
    assert _gone(processes[1:])


def test_a_stopped_worker_ends_at_sigterm(worker: RunningWorker) -> None:
    assert worker.program
    processes = worker.processes
    for pid in processes[1:]:
        os.kill(pid, signal.SIGSTOP)
    worker.process.terminate()
    assert worker.process.wait(60) == 0
    assert _gone(processes[1:])


def test_the_command_ends_when_tff_s_program_does(worker: RunningWorker) -> None:
    os.kill(worker.program, signal.SIGKILL)
    assert worker.process.wait(60) == 3


def _run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [POCKETFED, "worker", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120
    )


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        run = _run(["--port", str(port)])
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == (
        f"pocketfed: can't listen on 127.0.0.1:{port}: Address already in use; choose another --port or --bind\n"
    )


@pytest.mark.parametrize(("name", "told"), [("nowhere.invalid", "nowhere.invalid"), ("[::1]", "[[::1]]")])
def test_a_name_that_nobody_knows(name: str, told: str) -> None:
    run = _run(["--bind", name])
    assert (run.returncode, run.stdout) == (2, "")
    expected = f"can't listen on {told}:8000: the host is unknown; choose another --port or --bind"
    assert run.stderr == f"pocketfed: {expected}\n"


def test_an_address_of_another_machine() -> None:
    run = _run(["--bind", "192.0.2.1", "--port", "8000"])
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == (
        "pocketfed: can't listen on 192.0.2.1:8000: Cannot assign requested address; choose another --port or --bind\n"
    )
