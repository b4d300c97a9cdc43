"""One training step in the device's interpreter, as a ratio to TensorFlow's step on the same machine.

python -m benchmarks.step mnist_2nn
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

import models
from device_runtime.trainer import Trainer
from export.bundle_writer import export_bundle
from export.reference import KerasTrainer, synthetic_batch

_WARM_UP = 5


def measure(model: str, threads: int, batch_size: int, steps: int) -> dict[str, object]:
    """Medians of `steps` steps of each, taken by turns, in milliseconds; and their ratio."""
    spec = models.get(model)
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_bundle(spec, Path(folder))
        weights = bundle.initial_weights()
        lite, keras = Trainer(bundle, threads), KerasTrainer(spec, weights)
        lite.set_weights(weights)
        classes = bundle.manifest.signatures["infer"].outputs[0].shape[-1] or 1
        x, y = synthetic_batch(spec, classes, batch_size, np.random.Generator(np.random.Philox(0)))
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(_WARM_UP + steps):
            for times, trainer in zip(seconds, (lite, keras), strict=True):
                times.append(_timed(lambda trainer=trainer: trainer.step(x, y, 0.01)))  # type: ignore[misc]
    ours, theirs = (median(times[_WARM_UP:]) * 1e3 for times in seconds)
    return {
        "name": f"{model}_step_vs_tensorflow",
        "value": ours,
        "unit": "ms",
        "reference": "TensorFlow, all cores",
        "reference_value": theirs,
        "ratio": ours / theirs,
    }


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Parse the arguments and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=models.names())
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    print(json.dumps(measure(options.model, options.threads, options.batch_size, options.steps), indent=2))


if __name__ == "__main__":
    main()
