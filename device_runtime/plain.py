"""Settings as they come from scripts: NumPy's numbers, and paths as texts. Loads no NumPy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any


def make_plain(settings: Any, paths: Iterable[str] = ()) -> None:
    """In a frozen dataclass that is being made: Python's numbers for NumPy's, which neither JSON nor TOML knows.

    Args:
        settings: changed.
        paths: names of the fields that hold paths; a text there becomes one.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
            object.__setattr__(settings, field.name, value.item())
        elif field.name in paths and isinstance(value, str):
            object.__setattr__(settings, field.name, Path(value))
