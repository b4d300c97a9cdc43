"""MNIST and its kin (Fashion-MNIST, KMNIST), from the four IDX files in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from device_runtime.examples import Examples
from tff_sim.datasets.dataset import Dataset
from tff_sim.datasets.idx import read_idx
from tff_sim.errors import DatasetError

_SIDE = 28
_CLASSES = 10


def load(data_dir: Path) -> Dataset:
    """Images float32 [n, 28, 28, 1] in [0, 1] and labels int32 [n].

    Args:
        data_dir: folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
            ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, each plain or with ``.gz``.

    Raises:
        DatasetError: a file is missing or damaged, or the files don't fit each other.
    """
    if not data_dir.is_dir():
        raise DatasetError(f"{data_dir}: no such folder; --data-dir should hold the four MNIST files")
    return Dataset("mnist", _part(data_dir, "train"), _part(data_dir, "t10k"))


def _part(data_dir: Path, prefix: str) -> Examples:
    image_path = _find(data_dir, f"{prefix}-images-idx3-ubyte")
    label_path = _find(data_dir, f"{prefix}-labels-idx1-ubyte")
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if images.shape[1:] != (_SIDE, _SIDE):
        raise DatasetError(f"{image_path}: images of {images.shape[1]}×{images.shape[2]}; expected {_SIDE}×{_SIDE}")
    if len(images) != len(labels) or len(images) == 0:
        raise DatasetError(f"{label_path}: {len(labels)} labels for the {len(images)} images in {image_path.name}")
    if labels.max() >= _CLASSES:
        raise DatasetError(f"{label_path}: a label is {labels.max()}; expected 0 to {_CLASSES - 1}")
    return Examples(np.divide(images[..., None], np.float32(255), dtype=np.float32), labels.astype(np.int32))


def _find(data_dir: Path, name: str) -> Path:
    for path in (data_dir / name, data_dir / f"{name}.gz"):
        if path.is_file():
            return path
    raise DatasetError(f"{data_dir / name}: no such file, nor with .gz; --data-dir should hold the four MNIST files")
