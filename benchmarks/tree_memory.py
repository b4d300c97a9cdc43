"""Memory of the processes that this one starts, at its highest. Linux only."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_INTERVAL = 0.1  # seconds between two looks
_PSS = re.compile(r"^Pss:\s+(\d+) kB$", re.MULTILINE)
_PARENT = re.compile(r"^PPid:\s+(\d+)$", re.MULTILINE)


class TreePeak:
    """Looks at all processes that descend from this one again and again while the block lasts; a context manager.

    Counted is what each has in memory, shared pages by their share of them (PSS), and memory files that any of them
    has open (memfd), which nobody need have mapped.

    Attributes:
        peak_mb: the most at once, in MB of 10⁶ bytes.
    """

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_mb = max(self.peak_mb, descendants_bytes(os.getpid()) / 1e6)
            if self._over.wait(_INTERVAL):
                return


def descendants_bytes(root: int) -> int:
    """Bytes that a process's descendants take now; see `TreePeak`."""
    tree = _descendants(root)
    files = {entry: size for process in tree for entry, size in _memory_files(process)}
    return sum(map(_proportional_bytes, tree)) + sum(files.values())


def _descendants(root: int) -> set[int]:
    parents = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        found = _PARENT.search(_read(status))
        if found:
            parents[int(status.parent.name)] = int(found[1])
    tree, more = set[int](), {root}
    while more:
        more = {child for child, parent in parents.items() if parent in more} - tree
        tree |= more
    return tree


def _proportional_bytes(process: int) -> int:
    found = _PSS.search(_read(Path(f"/proc/{process}/smaps_rollup")))
    return int(found[1]) * 1024 if found else 0


def _memory_files(process: int) -> list[tuple[tuple[int, int], int]]:
    """(device, inode) and bytes of each memory file that it has open."""
    found = []
    try:
        with os.scandir(f"/proc/{process}/fd") as entries:
            for entry in entries:
                if os.readlink(entry.path).startswith("/memfd:"):  # noqa: PTH115  Path's is slower, and this is often
                    state = entry.stat()
                    found.append(((state.st_dev, state.st_ino), state.st_blocks * 512))
    except OSError:  # it has ended, or closed the file meanwhile
        pass
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
