"""`Family`: the names of its rows, and how its case is made when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.export.parity_case import Case, Row, family


@dataclass(frozen=True)
class Family:
    """Rows that share a conversion."""

    rows: tuple[str, ...]
    make: Callable[[], Case]


def branches(shape: tuple[int, ...], rows: Mapping[str, Row], seed: int = 0, symbols: int | None = None) -> Family:
    """See `tests.export.parity_case.family`."""
    return Family(tuple(rows), lambda: family(shape, rows, seed, symbols))


def chain(x: Any, *layers: Any) -> Any:
    """The layers one after the other."""
    for layer in layers:
        x = layer(x)
    return x
