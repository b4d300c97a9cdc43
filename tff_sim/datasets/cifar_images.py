"""CIFAR-10's images as the network of McMahan et al. 2017 takes them: crops of 24×24, whitened one by one.

The recipe is that of the TensorFlow tutorial which the paper names: for testing the central crop; for training a
random one, flipped at random, with brightness and contrast changed at random; then each image's own mean and deviation.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SIDE = 32
CROP = 24
_BRIGHTNESS = 63.0  # of 255, added or taken away
_CONTRAST = (0.2, 1.8)

Bytes = npt.NDArray[np.uint8]
Images = npt.NDArray[np.float32]


def central(images: Bytes) -> Images:
    """The middle of each image, whitened; uint8 [n, 32, 32, 3] to float32 [n, 24, 24, 3]."""
    edge = (SIDE - CROP) // 2
    result = np.empty((len(images), CROP, CROP, 3), np.float32)
    for start in range(0, len(images), 1000):  # a whole data set in float32 is needed once, not several times
        piece = images[start : start + 1000, edge : edge + CROP, edge : edge + CROP]
        result[start : start + 1000] = whitened(piece.astype(np.float32))
    return result


def distorted(images: Bytes, rng: np.random.Generator) -> Images:
    """A random crop of each image, mirrored, lightened and with another contrast at random, whitened.

    Args:
        images: uint8 [n, 32, 32, 3].
        rng: draws n times a corner, a side, a brightness of ±63 of 255, and a contrast from 0.2 to 1.8.

    Returns:
        float32 [n, 24, 24, 3].
    """
    count = len(images)
    top, left = rng.integers(0, SIDE - CROP + 1, (2, count, 1))
    columns = left + np.arange(CROP)
    mirrored = rng.random((count, 1)) < 0.5
    columns = np.where(mirrored, columns[:, ::-1], columns)
    rows = top + np.arange(CROP)
    crops = images[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]].astype(np.float32)
    crops += rng.uniform(-_BRIGHTNESS, _BRIGHTNESS, (count, 1, 1, 1)).astype(np.float32)
    means = crops.mean(axis=(1, 2), keepdims=True)
    crops = (crops - means) * rng.uniform(*_CONTRAST, (count, 1, 1, 1)).astype(np.float32) + means
    return whitened(crops)


def whitened(images: Images) -> Images:
    """Each image minus its mean, over its standard deviation or over 1/√pixels where that is larger.

    As ``tf.image.per_image_standardization`` does; float32 [n, height, width, channels].
    """
    axes = (1, 2, 3)
    least = 1 / np.sqrt(np.prod(images.shape[1:]))
    deviation = np.maximum(images.std(axis=axes, keepdims=True, dtype=np.float64), least)
    result: Images = ((images - images.mean(axis=axes, keepdims=True, dtype=np.float64)) / deviation).astype(np.float32)
    return result
