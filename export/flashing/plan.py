"""What is to be done for one target, as data: the same steps are shown by a dry run and done by a real one."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import tarfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol, cast

from device_runtime.bundle import MANIFEST, SUFFIX, Bundle
from device_runtime.errors import InputError, IntegrityError, PocketfedError
from device_runtime.tensors import sha256

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_HASH_LINE = re.compile(r"^\\?([0-9a-f]{64})[ *]", re.MULTILINE)


@dataclass(frozen=True)
class Load:
    """What is flashed.

    Attributes:
        bundle: verified.
        keys: files of public keys that devices are to check it with.
        token: of letters and digits, new each time; part of the names of what is only there for a while.
    """

    bundle: Bundle
    keys: tuple[Path, ...]
    token: str

    @property
    def name(self) -> str:
        """The folder's name, ``NAME-VERSION.bundle``.

        Raises:
            InputError: the model's name has other characters than a file's name should.
        """
        manifest = self.bundle.manifest
        if not _NAME.fullmatch(manifest.name):
            raise InputError(
                f"{self.bundle.path}: the model's name {manifest.name!r} is to be part of a file's name: expected"
                " letters, digits, '_', '-' and '.'; export it with another --name"
            )
        return f"{manifest.name}-{manifest.version}{SUFFIX}"

    @cached_property
    def hashes(self) -> Mapping[str, str]:
        """SHA-256 of every file of the bundle, by name.

        Raises:
            InputError: one that was there a moment ago can't be read.
        """
        known = {name: entry.sha256 for name, entry in self.bundle.manifest.files.items()}
        known[MANIFEST] = self.bundle.identity
        try:
            return {name: known.get(name) or sha256(self.bundle.file(name).read_bytes()) for name in self.bundle.files}
        except OSError as error:
            raise InputError(f"{self.bundle.path}: can't be read any more: {error.strerror}") from None


@dataclass(frozen=True)
class Finished:
    """How a command ended; `output` and `errors` are what it printed."""

    code: int
    output: str
    errors: str

    @property
    def last_error(self) -> str:
        """The last line that it printed on standard error, or else its exit code in words."""
        lines = [line.strip() for line in self.errors.splitlines() if line.strip()]
        return lines[-1] if lines else f"it ended with status {self.code}"


@dataclass(frozen=True)
class Command:
    """A program to run.

    Attributes:
        title: one word for progress.
        argv: program and arguments; never a shell's line.
        failure: the error to raise where its exit code is not 0.
        check: of what it printed otherwise; raises what is wrong, returns what is worth telling or nothing.
        sends: files to send to its standard input as a tar archive: name there → file here.
    """

    title: str
    argv: tuple[str, ...]
    failure: Callable[[Finished], PocketfedError]
    check: Callable[[Finished], str] = lambda finished: ""
    sends: Mapping[str, Path] = field(default_factory=dict)

    def shown(self) -> list[str]:
        """For a dry run: the command as a shell would take it, and comments."""
        sent = [f"# on its standard input, a tar archive of {shlex.join(self.sends)}"] if self.sends else []
        return [*sent, shlex.join(self.argv)]

    def to_json(self) -> dict[str, Any]:
        return {"title": self.title, "command": list(self.argv), "sends": list(self.sends)}

    def do(self, runner: Runner) -> str:
        finished = runner.run(self.argv, self.sends)
        if finished.code != 0:
            raise self.failure(finished)
        return self.check(finished)


@dataclass(frozen=True)
class Action:
    """Something that this program does itself."""

    title: str
    description: str
    act: Callable[[], str]

    def shown(self) -> list[str]:
        return [f"# {self.description}"]

    def to_json(self) -> dict[str, Any]:
        return {"title": self.title, "action": self.description}

    def do(self, runner: Runner) -> str:
        return self.act()


Step = Command | Action


@dataclass(frozen=True)
class Plan:
    """The steps for one target, in order, and what is done after them in any case."""

    target: str
    steps: Sequence[Step]
    cleanup: Command | None = None

    @property
    def all(self) -> Sequence[Step]:
        return (*self.steps, self.cleanup) if self.cleanup else self.steps


class Target(Protocol):
    """Something that a bundle is flashed to; `name` is how it was given."""

    @property
    def name(self) -> str: ...

    def plan(self, load: Load) -> Plan: ...


class Runner:
    """Runs commands of several threads, and ends them all when it is told to stop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, argv: Sequence[str], sends: Mapping[str, Path]) -> Finished:
        """Run to the end, sending files as a tar archive.

        Raises:
            InputError: there is no such program, or a file to send can't be read.
        """
        with self._lock:
            if self._stopped:
                raise InputError("interrupted")
            try:
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.PIPE if sends else subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            except OSError as error:
                raise InputError(
                    f"{argv[0]}: can't be run: {error.strerror}; install it, or name a folder on PATH that has it"
                ) from None
            self._running.add(process)
        try:
            sender = threading.Thread(target=_send, args=(process.stdin, sends)) if sends else None
            if sender is not None:
                sender.start()
                process.stdin = None  # it is the sender's
            output, errors = process.communicate()
            if sender is not None:
                sender.join()
        finally:
            with self._lock:
                self._running.discard(process)
        return Finished(process.returncode, output.decode(errors="replace"), errors.decode(errors="replace"))

    def stop(self) -> None:
        """Start nothing any more, and end what runs."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def _send(pipe: IO[bytes], files: Mapping[str, Path]) -> None:
    """Write a tar archive; a reader that went away tells why itself, and what can't be read fails the hashes there."""
    with contextlib.suppress(OSError), pipe, tarfile.open(fileobj=pipe, mode="w|", format=tarfile.GNU_FORMAT) as tar:
        for name, path in files.items():
            with path.open("rb") as file:
                entry = tarfile.TarInfo(name)
                entry.size = path.stat().st_size
                entry.mode = 0o644
                tar.addfile(entry, cast(IO[bytes], file))


def check_hashes(load: Load, where: str) -> Callable[[Finished], str]:
    """Compare what ``sha256sum`` of `load.hashes`, in this order, printed on a device."""

    def check(finished: Finished) -> str:
        found = _HASH_LINE.findall(finished.output)
        for (name, wanted), got in zip(load.hashes.items(), found, strict=False):
            if wanted != got:
                raise IntegrityError(f"{where}: {name} was damaged on the way: its SHA-256 is not the manifest's")
        if len(found) != len(load.hashes):
            raise IntegrityError(f"{where}: expected {len(load.hashes)} hashes from sha256sum there, got {len(found)}")
        return ""

    return check
