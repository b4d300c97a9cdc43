"""The device's side: python -m benchmarks.sides.device BUNDLE THREADS BATCH_SIZE."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.sides import take_turns
from device_runtime.bundle import open_bundle
from device_runtime.tensors import TensorSpec
from device_runtime.trainer import Trainer


def main(path: str, threads: str, batch_size: str) -> None:
    """Steps of the bundle's training artifact on a random batch."""
    bundle = open_bundle(Path(path))
    trainer = Trainer(bundle, int(threads))
    trainer.set_weights(bundle.initial_weights(), anchor=False)
    classes = bundle.manifest.signatures["infer"].outputs[0].shape[-1]
    rng = np.random.default_rng(0)

    def example(spec: TensorSpec) -> npt.NDArray[Any]:
        shape = (int(batch_size), *(size or 1 for size in spec.shape[1:]))
        if spec.dtype == "float32":
            return rng.random(shape, np.float32)
        return rng.integers(0, classes or 1, shape).astype(spec.dtype)

    x, y = (example(spec) for spec in bundle.manifest.examples)
    take_turns(lambda: trainer.step(x, y, 0.01))


if __name__ == "__main__":
    main(*sys.argv[1:])
