"""Copy a bundle so that the copy survives a loss of power, and is verified as the medium holds it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.bundle import Bundle, open_bundle
from device_runtime.errors import IntegrityError
from device_runtime.files import flush, flush_folder

if TYPE_CHECKING:  # cryptography is loaded only where keys are trusted
    from device_runtime.signature import TrustedKeys

_PIECE = 1 << 16
_LARGEST_MANIFEST = 1 << 20  # of the files that the manifest does not name: its own, its hash and its signature


def copy_bundle(bundle: Bundle, folder: Path, trusted: TrustedKeys | None = None) -> Bundle:
    """Copy a verified bundle into a folder that is made for it; the copy, verified anew.

    Nothing but the files of the bundle is copied, and of each no more than the manifest says. The source may change at
    any time: what is verified is the copy, read back from the medium where the system forgets what it has in memory.

    Raises:
        IntegrityError: the copy is not the bundle that was verified.
        OSError: the folder exists or can't be written, or the source can't be read.
    """
    folder.mkdir()
    for name in bundle.files:
        entry = bundle.manifest.files.get(name)
        _copy(bundle.file(name), folder / name, entry.size if entry else _LARGEST_MANIFEST)
    flush_folder(folder)
    for path in folder.iterdir():
        _forget(path)
    copy = open_bundle(folder, trusted)
    if copy.identity != bundle.identity:
        raise IntegrityError(f"{bundle.path}: changed while it was copied; try again")
    return copy


def write_file(path: Path, data: bytes) -> None:
    """A new file that is on the medium when this returns; its name is when `flush_folder` was called."""
    with path.open("xb") as file:
        file.write(data)
        flush(file)


def _copy(source: Path, target: Path, limit: int) -> None:
    with source.open("rb") as reading, target.open("xb") as writing:
        while piece := reading.read(min(_PIECE, limit)):
            limit -= len(piece)
            writing.write(piece)
        flush(writing)


def _forget(path: Path) -> None:
    """Ask the system to read the file from the medium the next time; a hint."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
