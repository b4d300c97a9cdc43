"""Peak resident memory of a program's process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.errors import BenchmarkError

# A process inherits the peak of the one that starts it; so a small one stands in between.
_SHIM = """
import resource, subprocess, sys
run = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(run.returncode)
"""


def peak_mb(command: Sequence[str]) -> float:
    """Run a program to its end; the most memory, in MB of 10⁶ bytes, that it had at once.

    Raises:
        BenchmarkError: it failed, or this system does not tell.
    """
    if sys.platform == "win32":
        raise BenchmarkError("peak memory can't be measured on Windows; leave out the benchmarks that end in _mb")
    # Compiling its modules would take more memory than they do: what pip installs on a device is compiled already.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    run = subprocess.run(
        [sys.executable, "-S", "-c", _SHIM, *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if run.returncode:
        said = (run.stderr.strip() or "it said nothing").splitlines()[-1]
        raise BenchmarkError(f"{command[0]} ended with code {run.returncode}: {said}")
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB elsewhere
    return int(run.stdout) * unit / 1e6
