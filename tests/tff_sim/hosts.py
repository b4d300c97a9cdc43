"""Two hosts for workers: network namespaces with cables to this one; without root, two loopback addresses."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tff_sim.workers.addresses import Address, Workers

PORT = 8700


@dataclass(frozen=True)
class Host:
    """Where a worker can run: its address, and the namespace it is in, whose `eth0` is a cable to this host."""

    ip: str
    namespace: str | None = None

    def command(self, arguments: Sequence[str]) -> list[str]:
        return [*(["ip", "netns", "exec", self.namespace] if self.namespace else []), *arguments]


@dataclass(frozen=True)
class RunningWorker:
    """``pocketfed worker`` and all of its processes."""

    host: Host
    process: subprocess.Popen[str]
    address: Address

    @property
    def processes(self) -> list[int]:
        """The command, the enclosure, and TFF's program."""
        found = [self.process.pid]
        for pid in found:
            children = Path(f"/proc/{pid}/task/{pid}/children")
            with contextlib.suppress(OSError):
                found += [int(child) for child in children.read_text().split()]
        return found

    @property
    def program(self) -> int:
        """TFF's program, the last of them; it starts when the command listens already."""
        end = time.monotonic() + 60
        while True:
            last = self.processes[-1]
            if Path(f"/proc/{last}/exe").resolve().name == "worker_binary":
                return last
            assert time.monotonic() < end
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        """To all of its processes at once, as when the host dies or stands still."""
        for pid in reversed(self.processes):
            with contextlib.suppress(ProcessLookupError):  # it ended with one that was killed just before
                os.kill(pid, number)


def namespaces_permitted() -> bool:
    """Whether this user may make network namespaces and cables between them."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"pf{os.getpid()}t"
    try:
        _ip("netns", "add", name)
    except subprocess.CalledProcessError:
        return False
    _ip("netns", "del", name)
    return True


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    if not namespaces_permitted():
        yield Host("127.0.0.2"), Host("127.0.0.3")
        return
    hosts = []
    with contextlib.ExitStack() as stack:
        for number, letter in enumerate("ab"):
            name = f"pf{os.getpid()}{letter}"
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
            _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("addr", "add", f"10.213.{number}.1/24", "dev", name)
            _ip("link", "set", name, "up")
            for arguments in (["addr", "add", f"10.213.{number}.2/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
                _ip("-n", name, *arguments)
            _ip("-n", name, "link", "set", "lo", "up")
            hosts.append(Host(f"10.213.{number}.2", name))
        yield hosts[0], hosts[1]


@contextlib.contextmanager
def worker_on(host: Host, port: int = PORT) -> Iterator[RunningWorker]:
    process = subprocess.Popen(
        host.command(
            [str(Path(sys.executable).with_name("pocketfed")), "worker", "--bind", host.ip, "--port", str(port)]
        ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    worker = RunningWorker(host, process, Address(host.ip, port))
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"listening on {host.ip}:{port}\n"
        yield worker
    finally:
        for pid in worker.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        process.terminate()
        process.communicate()


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def when_it_computes(worker: RunningWorker, action: Callable[[], None], seconds: float = 0.3) -> None:
    """Do it when the worker has computed for so long from now on; that it comes to that is the caller's to see."""
    program = worker.program
    end, start = time.monotonic() + 120, processor_seconds(program)
    while processor_seconds(program) < start + seconds and time.monotonic() < end:
        time.sleep(0.02)
    action()


def workers_at(workers: Sequence[RunningWorker], silence: float = 30.0, limit: float | None = None) -> Workers:
    return Workers(tuple(worker.address for worker in workers), silence, limit)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
