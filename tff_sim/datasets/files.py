"""What the loaders say of a folder or a file that can't be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tff_sim.errors import DatasetError


def require_folder(folder: Path, holds: str) -> None:
    """`DatasetError` where there is no such folder; `holds` says what it should hold."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; --data-dir should hold {holds}")


def read_file(path: Path, expected: str) -> bytes:
    """A file's content; `DatasetError` where it can't be read; `expected` says what it should be."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file; expected {expected}") from None
    except OSError as error:
        raise DatasetError(f"{path}: can't read it: {error.strerror}; expected {expected}") from None


def files_in(folder: Path, suffix: str, holds: str) -> Sequence[Path]:
    """The files of a folder that end in `suffix`, sorted by name; `DatasetError` where there is none."""
    require_folder(folder, holds)
    found = sorted(path for path in folder.glob(f"*{suffix}") if path.is_file())
    if not found:
        raise DatasetError(f"{folder}: no {suffix} file in it; --data-dir should hold {holds}")
    return found
