"""`DevicePool`: processes that train clients side by side, each with the artifact of one bundle, on one thread."""

from __future__ import annotations

import collections
import contextlib
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from device_runtime.errors import InputError, NetworkError
from tff_sim.child_process import dies_with_parent
from tff_sim.engines.device.job import Answer, Job

_STOP_SECONDS = 5.0
_ATTEMPTS = 2  # of a job; a process that dies of one may have been the system's victim, two hardly


class DevicePool:
    """A context manager: its processes are started by it, and end with it or with this process.

    Args:
        bundle: its path.
        processes: how many; the number of the machine's cores unless said otherwise.

    Raises:
        InputError: fewer than one process, or one can't work with the bundle; the message is the device's.
        NetworkError: a process ended as it started.
    """

    def __init__(self, bundle: Path, processes: int | None = None) -> None:
        self._bundle = bundle
        self._count = len(os.sched_getaffinity(0)) if processes is None else processes
        if self._count < 1:
            raise InputError(f"the number of device processes should be at least 1, not {self._count}")
        self._devices: dict[int, _Device] = {}

    def __enter__(self) -> Self:
        self._start_missing()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for number in list(self._devices):
            self._end(number)

    @property
    def processes(self) -> list[int]:
        """Their process ids."""
        return [device.pid for device in self._devices.values()]

    def run(self, clients: Sequence[str], make_job: Callable[[int, int], Job]) -> list[Answer]:
        """Train all clients of a round, in the order given; their answers, in the same.

        A process that dies in the middle is replaced, and its client is trained again.

        Args:
            clients: their names, for messages; those that take longest first, so that none is waited for at the end.
            make_job: called with the number of a client and of the process that will train it, when that is free; it
                may use the process's own memory anew.

        Raises:
            NetworkError: the process died twice of the same client, or its replacement does not start.
            InputError: a client's examples or weights do not fit the bundle.
        """
        self._start_missing()
        answers: dict[int, Answer] = {}
        waiting, attempts = collections.deque(range(len(clients))), collections.Counter[int]()
        busy: dict[int, int] = {}  # process → client
        with selectors.DefaultSelector() as selector:
            try:
                while len(answers) < len(clients):
                    for number in sorted(self._devices.keys() - busy.keys())[: len(waiting)]:
                        busy[number] = client = waiting.popleft()
                        self._devices[number].send(make_job(client, number))
                        selector.register(self._devices[number].answers, selectors.EVENT_READ, number)
                    for key, _ in selector.select():
                        selector.unregister(key.fileobj)
                        client = busy[key.data]
                        answer = self._devices[key.data].receive()
                        if answer is None:
                            attempts[client] += 1
                            self._replace(key.data, clients[client], attempts[client])
                            waiting.appendleft(client)
                        elif answer.error is not None:
                            raise InputError(f"{self._bundle}: can't train {clients[client]!r}: {answer.error}")
                        else:
                            answers[client] = answer
                        del busy[key.data]
            finally:
                for number in busy:  # after an error: they would answer what nobody waits for
                    self._end(number)
        return [answers[client] for client in range(len(clients))]

    def _start_missing(self) -> None:
        missing = [number for number in range(self._count) if number not in self._devices]
        try:
            for number in missing:
                self._devices[number] = _Device(self._bundle)  # they start side by side,
            for number in missing:
                self._devices[number].await_ready()  # and are waited for afterwards
        except BaseException:
            self.close()
            raise

    def _replace(self, number: int, client: str, attempts: int) -> None:
        code = self._end(number)
        if attempts == _ATTEMPTS:
            raise NetworkError(
                f"a device process ended with code {code} while it trained {client!r}, and so did the one that took its"
                " place; was the memory used up?"
            )
        self._start_missing()

    def _end(self, number: int) -> int:
        return self._devices.pop(number).stop() if number in self._devices else 0


class _Device:
    """One process. It is asked for one thing at a time."""

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        self._process = subprocess.Popen(
            dies_with_parent([sys.executable, "-m", "tff_sim.engines.device.worker", str(bundle)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C reaches the parent alone, which ends them all
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._jobs, self.answers = self._process.stdin, self._process.stdout

    @property
    def pid(self) -> int:
        return self._process.pid

    def await_ready(self) -> None:
        answer = self.receive()
        if answer is None:
            raise NetworkError(f"a device process ended with code {self.stop()} as it started")
        if answer.error is not None:
            self.stop()
            raise InputError(answer.error)

    def send(self, job: Job) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has died, which `receive` will find
            self._jobs.write(job.dump())
            self._jobs.flush()

    def receive(self) -> Answer | None:
        """Its answer, waited for; None if it has died."""
        line = self.answers.readline()
        return Answer.load(line) if line.endswith(b"\n") else None

    def stop(self) -> int:
        """End it; its exit code."""
        self._process.kill()  # it holds nothing that could be lost
        code = self._process.wait(_STOP_SECONDS)
        for pipe in (self._jobs, self.answers):
            with contextlib.suppress(BrokenPipeError):  # of what was not flushed
                pipe.close()
        return code
