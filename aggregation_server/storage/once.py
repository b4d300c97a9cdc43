"""`write_once`: small files that are made once, by whichever server is the first."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def write_once(path: Path, text: str) -> None:
    """Make a file of its owner alone, that is there with all of its text or not at all; one that is there stays.

    Raises:
        OSError: the disk is full, or failed.
    """
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        with suppress(FileExistsError):  # another server was faster
            path.hardlink_to(draft)
    finally:
        draft.unlink(missing_ok=True)
