"""Arrays in memory that other processes on this machine read, without a copy through a socket.

The memory has no name in any folder: it is a file descriptor of this process, which others of the same user open by its
path below /proc. So nothing is left of it when this process ends, whatever ends it. Linux only, as TFF is.
"""

from __future__ import annotations

import errno
import os
import resource
import weakref
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.errors import InputError


class SharedMemory:
    """A file in memory. It is freed with this object.

    Attributes:
        path: where processes of the same user open it, as long as this process lives.
    """

    def __init__(self) -> None:
        self._descriptor = _memory_file()
        self._size = 0
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        weakref.finalize(self, os.close, self._descriptor)

    def resize(self, size: int) -> None:
        """Make it so many bytes long; new ones are zero."""
        if size != self._size:
            os.ftruncate(self._descriptor, size)
            self._size = size

    def write(self, arrays: Iterable[npt.NDArray[Any]]) -> None:
        """Replace the content: the arrays' bytes, one after the other.

        Whoever reads meanwhile sees parts of both: to be called between rounds.
        """
        end = 0
        for array in arrays:
            rest = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            while rest:
                written = os.pwrite(self._descriptor, rest, end)
                rest, end = rest[written:], end + written
        self._size = max(self._size, end)
        self.resize(end)


def _memory_file() -> int:
    limit = _open_files()
    try:
        return os.memfd_create("pocketfed")
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise InputError(
            f"a round's clients need several open files each, and a process may have {limit}: lower --fraction, or"
            " raise the limit ('ulimit -Hn')"
        ) from error


@cache
def _open_files() -> int:
    """How many files this process may have open: from now on as many as the system permits, not the usual thousand."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most
