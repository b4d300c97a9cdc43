"""Loaders of public data formats. Nothing is downloaded: real data comes from a folder that the user names."""

from __future__ import annotations

from pathlib import Path

from tff_sim.datasets import digits, mnist
from tff_sim.datasets.dataset import Dataset
from tff_sim.errors import DatasetError

__all__ = ["NAMES", "Dataset", "load"]

NAMES = ("digits", "mnist")


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """The data set with this name.

    Args:
        name: one of `NAMES`.
        data_dir: where its files are; ``digits`` is embedded and needs none.

    Raises:
        DatasetError: the name is not known, the folder is missing, or a file in it is damaged.
    """
    if name == "digits":
        return digits.load()
    if name == "mnist":
        if data_dir is None:
            raise DatasetError("data set 'mnist': --data-dir is missing; it names the folder with the four MNIST files")
        return mnist.load(data_dir)
    raise DatasetError(f"unknown data set {name!r}; known data sets: {', '.join(NAMES)}")
