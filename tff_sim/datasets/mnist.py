"""MNIST and its kin (Fashion-MNIST, KMNIST, EMNIST), from the four IDX files in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tff_sim.datasets.dataset import Dataset
from tff_sim.datasets.files import require_folder
from tff_sim.datasets.idx import read_idx
from tff_sim.errors import DatasetError
from tff_sim.pixels import PixelExamples

_SIDE = 28


@dataclass(frozen=True)
class Kin:
    """How one of the family is published.

    Attributes:
        title: as people write it.
        train, test: what the names of its files begin with.
        labels: from the first to the last; they are moved to begin with 0.
        transposed: the images lie on their side, as EMNIST's do.
    """

    title: str
    train: str = "train"
    test: str = "t10k"
    labels: tuple[int, int] = (0, 9)
    transposed: bool = False


def _emnist(split: str, first: int, last: int) -> Kin:
    return Kin(f"EMNIST {split}", f"emnist-{split}-train", f"emnist-{split}-test", (first, last), transposed=True)


KIN: dict[str, Kin] = {
    "mnist": Kin("MNIST"),
    "fashion-mnist": Kin("Fashion-MNIST"),
    "kmnist": Kin("KMNIST"),
    "emnist-balanced": _emnist("balanced", 0, 46),
    "emnist-byclass": _emnist("byclass", 0, 61),
    "emnist-bymerge": _emnist("bymerge", 0, 46),
    "emnist-digits": _emnist("digits", 0, 9),
    "emnist-letters": _emnist("letters", 1, 26),
    "emnist-mnist": _emnist("mnist", 0, 9),
}


def load(data_dir: Path, name: str = "mnist") -> Dataset:
    """Images float32 [n, 28, 28, 1] in [0, 1], upright, kept as bytes, and labels int32 [n] from 0 on.

    Args:
        data_dir: folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
            ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte`` (EMNIST's begin with, for instance,
            ``emnist-letters-train-`` and ``emnist-letters-test-``), each plain or with ``.gz``.
        name: one of `KIN`.

    Raises:
        DatasetError: a file is missing or damaged, or the files don't fit each other.
    """
    kin = KIN[name]
    require_folder(data_dir, f"the four {kin.title} files")
    train, test = (_part(data_dir, kin, prefix) for prefix in (kin.train, kin.test))
    return Dataset(name, train, test)


def _part(data_dir: Path, kin: Kin, prefix: str) -> PixelExamples:
    image_path = _find(data_dir, kin, f"{prefix}-images-idx3-ubyte")
    label_path = _find(data_dir, kin, f"{prefix}-labels-idx1-ubyte")
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if images.shape[1:] != (_SIDE, _SIDE):
        raise DatasetError(f"{image_path}: images of {images.shape[1]}×{images.shape[2]}; expected {_SIDE}×{_SIDE}")
    if len(images) != len(labels) or len(images) == 0:
        raise DatasetError(f"{label_path}: {len(labels)} labels for the {len(images)} images in {image_path.name}")
    first, last = kin.labels
    for label in (labels.min(), labels.max()):
        if not first <= label <= last:
            raise DatasetError(f"{label_path}: a label is {label}; expected {first} to {last}")
    if kin.transposed:
        images = images.transpose(0, 2, 1)
    return PixelExamples(images[..., None], labels.astype(np.int32) - np.int32(first))


def _find(data_dir: Path, kin: Kin, name: str) -> Path:
    for path in (data_dir / name, data_dir / f"{name}.gz"):
        if path.is_file():
            return path
    raise DatasetError(
        f"{data_dir / name}: no such file, nor with .gz; --data-dir should hold the four {kin.title} files"
    )
