"""What the processes that this one started take."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from benchmarks.tree_memory import TreePeak, descendants_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

_WAIT = "print(flush=True); sys.stdin.read()"
_OWN = f"import os, sys; kept = bytearray(os.urandom(1)) * 40_000_000; {_WAIT}"
_FILE = f"import os, sys; file = os.memfd_create('m'); os.write(file, bytes(40_000_000)); {_WAIT}"
PROGRAMS = {
    "its own": _OWN,
    "a child's": f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {_OWN!r}])",
    "a memory file's": _FILE,
}


@pytest.mark.parametrize("whose", PROGRAMS)
def test_memory_counts(whose: str) -> None:
    others = descendants_bytes(os.getpid()) / 1e6  # of other tests
    with TreePeak() as tree:
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", PROGRAMS[whose]], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        end = time.monotonic() + 30
        while tree.peak_mb - others < 40 and time.monotonic() < end:
            time.sleep(0.1)
        process.communicate()
    assert 40 < tree.peak_mb - others < 90
