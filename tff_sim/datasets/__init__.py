"""Loaders of public data formats. Nothing is downloaded: real data comes from a folder that the user names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tff_sim.datasets import cifar10, digits, leaf, mnist, npz_folder, shakespeare
from tff_sim.datasets.dataset import Dataset, Owners
from tff_sim.errors import DatasetError

__all__ = ["NAMES", "PACKED", "Dataset", "Owners", "load"]

# Each with what --data-dir names for it.
_LOADERS: dict[str, tuple[Callable[[Path], Dataset], str]] = {
    **{
        name: (partial(mnist.load, name=name), f"the folder with the four {kin.title} files")
        for name, kin in mnist.KIN.items()
    },
    "cifar10": (cifar10.load, "the folder with the batches of CIFAR-10"),
    "shakespeare": (shakespeare.load, f"the folder with the plays in {shakespeare.FILE}"),
    "shakespeare-lines": (
        partial(shakespeare.load, lines=True),
        f"the folder with the plays in {shakespeare.FILE}",
    ),
    "leaf": (leaf.load, "the folder with LEAF's train and test"),
    "npz": (npz_folder.load, "the folder with a .npz file for each client"),
}

NAMES = ("digits", *_LOADERS)
PACKED = "packed"
"""What --dataset takes beside `NAMES`: it says that --data-dir is a population on disk, and is not for `load`."""


def load(name: str, data_dir: Path | str | None = None) -> Dataset:
    """The data set with this name.

    Args:
        name: one of `NAMES`.
        data_dir: where its files are; ``digits`` is embedded and takes none.

    Raises:
        DatasetError: the name is not known, the folder is missing or one too many, or a file in it is damaged.
    """
    if name == "digits":
        if data_dir is not None:
            raise DatasetError(
                f"data set {name!r} is embedded, and needs no --data-dir: leave it out, or name its data set with"
                " --dataset"
            )
        return digits.load()
    if name == PACKED:
        raise DatasetError(
            f"data set {name!r} is a population on disk: open it with tff_sim.population.StoredPopulation"
        )
    if name not in _LOADERS:
        raise DatasetError(f"unknown data set {name!r}; known data sets: {', '.join((*NAMES, PACKED))}")
    loader, folder = _LOADERS[name]
    if data_dir is None:
        raise DatasetError(f"data set {name!r}: --data-dir is missing; it names {folder}")
    return loader(Path(data_dir))
