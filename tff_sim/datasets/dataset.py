"""`Dataset`: train and test examples of one task."""

from __future__ import annotations

from dataclasses import dataclass

from device_runtime.examples import Examples


@dataclass(frozen=True)
class Dataset:
    """Examples to deal to clients, and examples to test the global model with.

    Attributes:
        name: the loader's name.
        train, test: features float32 [n, …] and labels int32 [n].
    """

    name: str
    train: Examples
    test: Examples
