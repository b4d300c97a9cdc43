"""Child processes that do not outlive this one, whatever ends it.

A context manager ends its children where Python gets to run; after ``kill -9`` only the kernel can.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

# Asks the kernel to kill this process when its parent dies (PR_SET_PDEATHSIG is 1), then becomes the program. A
# preexec_fn could do the same, but would fork with gRPC's threads running, which can crash the parent.
_LAUNCHER = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"


def dies_with_parent(command: Sequence[str]) -> list[str]:
    """The command, with a launcher before it that ties its life to this process's where the kernel is Linux.

    Args:
        command: the program's path, then its arguments.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-S", "-c", _LAUNCHER, *command]
