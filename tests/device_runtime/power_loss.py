"""Lose power at every step of an install: a program, run by `test_power_loss.py`, that says what is left each time.

Usage: ``python power_loss.py ROOT NEW FOLDER MODE``, where ROOT is an installation that stays as it is, NEW a
bundle, and MODE what the disk does. ``keep``: all that was written is there, as after ``kill -9``. ``lose``: what was
not synced is gone, as after a loss of power on a slow disk: contents of files, names in folders, and renames.
``reorder``: the same, but that renames reached the disk before what was done earlier in their folder.

It prints a line of JSON for each step, of which the last is the install that was let through.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import device_runtime.selftest  # noqa: F401  # loaded before the fork
from device_runtime.bundle import open_bundle
from device_runtime.installation import Installation

CRASHED = 77
CHANGES = ("mkdir", "symlink", "replace")


class Disk:
    """The file operations of `os`, of which the one with the number `last` is the last that begins."""

    def __init__(self, root: Path, last: int, mode: str) -> None:
        self.root = os.path.realpath(root)
        self.left = last
        self.mode = mode
        self.names: list[tuple[str, Callable[[], object]]] = []  # folder that is not synced, how to undo the change
        self.contents: set[str] = set()  # files that are not synced

    def install(self) -> None:
        for name in ("mkdir", "symlink", "replace", "rename", "fsync", "unlink", "rmdir"):
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        sys.addaudithook(self._audit)

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self._count()
            target = os.fspath(arguments[0 if name == "mkdir" else 1]) if name in CHANGES else ""
            before = os.readlink(target) if os.path.islink(target) else None
            result = real(*arguments, **options)
            if name == "fsync":
                self._synced(os.readlink(f"/proc/self/fd/{arguments[0]}"))
            elif name in CHANGES and not (name == "replace" and self.mode == "reorder"):
                self._changed(target, lambda: back(target, before))
            return result

        return call

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wxa"):
            path = os.path.realpath(arguments[0])
            if path.startswith(self.root) and not os.path.exists(path):
                self._count()
                self._changed(path, lambda: remove(path))
                self.contents.add(path)

    def _changed(self, path: str, undo: Callable[[], object]) -> None:
        self.names.append((os.path.realpath(os.path.dirname(path)), undo))

    def _synced(self, path: str) -> None:
        self.contents.discard(path)
        self.names = [(folder, undo) for folder, undo in self.names if folder != path]

    def _count(self) -> None:
        self.left -= 1
        if self.left >= 0:
            return
        self.left = 1 << 30  # what follows is the loss itself
        if self.mode != "keep":
            for path in self.contents:
                if os.path.exists(path):
                    os.truncate(path, 0)
            for _, undo in reversed(self.names):
                undo()
        os._exit(CRASHED)


def back(target: str, before: str | None) -> None:
    remove(target)
    if before is not None:
        os.symlink(before, target)


def remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def attempt(root: Path, new: Path, last: int, mode: str) -> int:
    """Install in a process of its own; its exit code."""
    child = os.fork()
    if child == 0:
        try:
            Disk(root, last, mode).install()
            Installation(root).install(new)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(before: Path, new: Path, folder: Path, mode: str) -> None:
    for last in itertools.count():
        root = folder / str(last)
        shutil.copytree(before, root, symlinks=True)
        code = attempt(root, new, last, mode)
        installation = Installation(root)
        installed = os.path.lexists(root / "state")
        report = {
            "exit": code,
            "current": open_bundle(root / "current").identity if installed else None,
            "read": slot.release.identity if (slot := installation.read().current) else None,
            "again": installation.install(new).action,
            "after": open_bundle(root / "current").identity,
            "bundles": len(list((root / "bundles").iterdir())),
            "states": len(list((root / "states").iterdir())),
            "names": sorted(path.name for path in root.iterdir()),
        }
        print(json.dumps(report), flush=True)
        shutil.rmtree(root)
        if code != CRASHED:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
