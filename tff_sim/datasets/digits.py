"""The 8×8 digits that scikit-learn ships: 1,797 images, the embedded default."""

from __future__ import annotations

import numpy as np

from device_runtime.examples import Examples
from tff_sim.datasets.dataset import Dataset

_TEST = 360
_LARGEST = 16  # the pixels count from 0 to 16


def load() -> Dataset:
    """1,437 train and 360 test images, float32 [n, 8, 8, 1] in [0, 1]; the split is always the same."""
    from sklearn.datasets import load_digits  # takes seconds to load, and no other data set needs it

    images, labels = load_digits(return_X_y=True)
    order = np.random.Generator(np.random.Philox(0)).permutation(len(images))
    x = (images[order] / _LARGEST).astype(np.float32).reshape(-1, 8, 8, 1)
    y = labels[order].astype(np.int32)
    return Dataset("digits", Examples(x[_TEST:], y[_TEST:]), Examples(x[:_TEST], y[:_TEST]))
