"""CIFAR-10 (Krizhevsky 2009), from its binary batches or from its batches for Python.

Formats: https://www.cs.toronto.edu/~kriz/cifar.html. An image is 3,072 bytes: a plane of 32×32 for red, then one for
green and one for blue. A binary batch has 10,000 of them, a byte with the label before each; a batch for Python is a
pickled dictionary.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from device_runtime.examples import Examples
from tff_sim.datasets.cifar_images import SIDE, central
from tff_sim.datasets.dataset import Dataset, joined
from tff_sim.datasets.files import read_file, require_folder
from tff_sim.datasets.restricted_pickle import read_pickle
from tff_sim.errors import DatasetError

_PIXELS = 3 * SIDE * SIDE
_CLASSES = 10
_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST = "test_batch"
_HOLDS = "CIFAR-10's data_batch_1.bin to data_batch_5.bin and test_batch.bin, or the same without .bin"
_EXPECTED_BINARY = f"a binary batch of CIFAR-10: records of {1 + _PIXELS} bytes, a label and an image"
_EXPECTED_PYTHON = f"a batch of CIFAR-10 for Python: 'data' of n×{_PIXELS} bytes and n 'labels'"


def load(data_dir: Path) -> Dataset:
    """Central crops, whitened, float32 [n, 24, 24, 3], and labels int32 [n] from 0 to 9.

    Args:
        data_dir: folder with the six batches, binary or for Python.

    Raises:
        DatasetError: a file is missing, damaged or not what it should be.
    """
    raw = load_raw(data_dir)
    train, test = (Examples(central(part.x), part.y) for part in (raw.train, raw.test))
    return Dataset("cifar10", train, test)


def load_raw(data_dir: Path) -> Dataset:
    """The images as they are, uint8 [n, 32, 32, 3]; else as `load`."""
    require_folder(data_dir, _HOLDS)
    binary = (data_dir / f"{_TRAIN[0]}.bin").exists()
    if not binary and not (data_dir / _TRAIN[0]).exists():
        raise DatasetError(f"{data_dir}: neither {_TRAIN[0]}.bin nor {_TRAIN[0]} in it; it should hold {_HOLDS}")
    read: Callable[[Path], Examples] = _binary if binary else _python
    suffix = ".bin" if binary else ""
    train = joined(read(data_dir / f"{name}{suffix}") for name in _TRAIN)
    return Dataset("cifar10", train, read(data_dir / f"{_TEST}{suffix}"))


def _binary(path: Path) -> Examples:
    data = read_file(path, _EXPECTED_BINARY)
    if not data or len(data) % (1 + _PIXELS):
        raise DatasetError(f"{path}: truncated or of another format: {len(data)} bytes; expected {_EXPECTED_BINARY}")
    records = np.frombuffer(data, np.uint8).reshape(-1, 1 + _PIXELS)
    return _examples(path, records[:, 1:], records[:, 0])


def _python(path: Path) -> Examples:
    batch = read_pickle(path, _EXPECTED_PYTHON)
    pixels, labels = batch.get(b"data"), batch.get(b"labels")
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        found = f"is {pixels.shape}" if isinstance(pixels, np.ndarray) else "is missing"
        raise DatasetError(f"{path}: 'data' {found}; expected {_EXPECTED_PYTHON}")
    if not isinstance(labels, list) or len(labels) != len(pixels) or not len(labels):
        raise DatasetError(f"{path}: 'labels' is not a list of {len(pixels)}; expected {_EXPECTED_PYTHON}")
    if not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise DatasetError(f"{path}: 'labels' holds something else than small numbers; expected {_EXPECTED_PYTHON}")
    return _examples(path, pixels, np.array(labels))


def _examples(path: Path, pixels: np.ndarray, labels: np.ndarray) -> Examples:  # type: ignore[type-arg]
    if labels.max() >= _CLASSES:
        raise DatasetError(f"{path}: a label is {labels.max()}; expected 0 to {_CLASSES - 1}")
    planes = pixels.reshape(-1, 3, SIDE, SIDE)
    return Examples(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels.astype(np.int32))
