"""The TFLite interpreters that exports are checked in: this Python's, and those that POCKETFED_RUNTIMES names.

Each runs in a process of its own, because tflite-runtime and its successor can't be installed together, and because
an interpreter that crashes should not take the export with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.commands.options import TRUSTED_KEYS
from device_runtime.errors import CheckFailedError, InputError

RUNTIMES = "POCKETFED_RUNTIMES"
"""Environment variable: Python executables, separated as in PATH, that have NumPy and a TFLite interpreter."""
_SUCCESSOR = Path(sys.prefix) / "litert" / "bin" / "python"  # ai-edge-litert's environment
_ROOT = Path(__file__).resolve().parent.parent
_STARTING = 60.0
_RUNNING = 300.0

Arrays = Mapping[str, npt.NDArray[Any]]
SignatureCall = tuple[str, Arrays]
"""Name of a signature, and its inputs."""


class RuntimeFailedError(CheckFailedError):
    """An interpreter could not load or run an artifact, crashed, or took too long."""


def installed_runtimes() -> list[Path]:
    """This Python, then those of the environment variable POCKETFED_RUNTIMES, or else the one of 'make setup'.

    Raises:
        InputError: the variable names a file that is not there.
    """
    named = os.environ.get(RUNTIMES)
    if named is None:
        named = str(_SUCCESSOR) if _SUCCESSOR.is_file() else ""
    further = [Path(name) for name in named.split(os.pathsep) if name]
    for python in further:
        if not python.is_file():
            raise InputError(f"{python}: no such file; {RUNTIMES} names Python executables: 'make setup' makes them")
    return list(dict.fromkeys([Path(sys.executable), *further]))


def child_environment() -> dict[str, str]:
    """For a process of another Python that imports this project's packages."""
    kept = {name: value for name, value in os.environ.items() if name not in (TRUSTED_KEYS, "PYTHONHOME")}
    return kept | {"PYTHONPATH": str(_ROOT), "PYTHONSAFEPATH": "1"}


class Runtime:
    """A process with an interpreter that makes calls to artifacts; a context manager that ends it.

    Attributes:
        python: its Python executable.
        name: of the interpreter, such as ``tflite-runtime 2.14.0``.

    Raises:
        RuntimeFailedError: it does not start.
    """

    def __init__(self, python: Path) -> None:
        self.python = python
        self.name = str(python)
        self._process: subprocess.Popen[str] | None = None
        self.name = self._start()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def run(self, artifact: bytes, calls: Sequence[SignatureCall], threads: int = 1) -> list[dict[str, Any]]:
        """Make the calls one after the other in a fresh interpreter.

        Returns:
            For each call, its outputs by name.

        Raises:
            RuntimeFailedError: the interpreter refuses the artifact or a call, crashes, or takes longer than five
                minutes. The next call starts a new process.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "artifact.tflite").write_bytes(artifact)
            (folder / "calls.json").write_text(json.dumps([signature for signature, _ in calls]))
            arrays = {f"{i}/{key}": value for i, (_, inputs) in enumerate(calls) for key, value in inputs.items()}
            np.savez(folder / "inputs.npz", **arrays)
            problem = self._ask(json.dumps({"folder": name, "threads": threads}))
            if problem:
                raise RuntimeFailedError(f"{self.name}: {problem}")
            outputs: list[dict[str, Any]] = [{} for _ in calls]
            with np.load(folder / "outputs.npz", allow_pickle=False) as results:
                for key in results.files:
                    call, _, output = key.partition("/")
                    outputs[int(call)][output] = results[key]
            return outputs

    def _start(self) -> str:
        self._process = subprocess.Popen(
            [str(self.python), "-m", "export.runtime_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(),
            text=True,
        )
        return self._answer(self._process, _STARTING)

    def _ask(self, line: str) -> str:
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None and process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: there is no answer either
            print(line, file=process.stdin, flush=True)
        return self._answer(process, _RUNNING)

    def _answer(self, process: subprocess.Popen[str], seconds: float) -> str:
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        line = process.stdout.readline()
        timer.cancel()
        if not line:
            self.close()
            how = f"took longer than {seconds:.0f} s" if late.is_set() else f"crashed (status {process.returncode})"
            raise RuntimeFailedError(f"{self.name}: the interpreter {how}")
        return line.rstrip("\n")
