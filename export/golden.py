"""``golden.npz``: a batch, and what Keras computes from it, for the self-test on the device."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from device_runtime.tensors import Weights
from export.reference import KerasTrainer, synthetic_batch
from models import ModelSpec

STEPS = 3
BATCH = 8
LEARNING_RATE = 0.05


def golden_file(spec: ModelSpec, weights: Weights, classes: int, seed: int) -> bytes:
    """Bytes of ``golden.npz`` from Keras; its arrays are described in `device_runtime.selftest`."""
    x, y = synthetic_batch(spec, classes, BATCH, np.random.Generator(np.random.Philox(seed)))
    keras = KerasTrainer(spec, weights)
    arrays: dict[str, Any] = {
        "x": x,
        "y": y,
        "learning_rate": np.float32(LEARNING_RATE),
        "steps": np.int32(STEPS),
        "logits": keras.infer(x),
    }
    arrays["losses"] = np.array([keras.step(x, y, LEARNING_RATE) for _ in range(STEPS)], np.float32)
    arrays |= {f"w{index}": value for index, value in enumerate(keras.get_weights())}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
