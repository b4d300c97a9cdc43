"""A device process of the pool: python -m tff_sim.engines.device.worker BUNDLE.

Trains as a device does, with the device's own `Trainer`, and no TensorFlow. Says in a line of JSON on standard output
that it is ready, or why not; then takes jobs, a line each, from standard input until that ends.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np

from device_runtime.bundle import open_bundle
from device_runtime.errors import PocketfedError, UpdateError
from device_runtime.examples import Examples
from device_runtime.trainer import Trainer
from tff_sim.engines.device.job import Answer, Job


def main(bundle: str) -> None:
    """Train job after job."""
    answers, jobs = sys.stdout.buffer, sys.stdin.buffer
    try:
        trainer = Trainer(open_bundle(Path(bundle)), threads=1)
    except (PocketfedError, OSError) as error:
        answers.write(Answer(error=str(error)).dump())
        return
    answers.write(Answer().dump())
    answers.flush()
    for line in jobs:
        answers.write(_train(trainer, Job.load(line)).dump())
        answers.flush()


def _train(trainer: Trainer, job: Job) -> Answer:
    weights = tuple(array.open() for array in job.weights)
    delta = job.delta.open("r+")
    try:
        trained = trainer.train(weights, Examples(job.x.open(), job.y.open()), job.work, job.round_number)
    except UpdateError:
        delta[:] = math.nan  # the same that TensorFlow comes to
        return Answer()
    except (PocketfedError, ValueError, RuntimeError) as error:  # the interpreter's own are the latter two
        return Answer(error=str(error).splitlines()[0])
    end = 0
    for tensor in trained.deltas():
        delta[end : end + tensor.size] = tensor.reshape(-1)
        end += tensor.size
    return Answer(float(np.float64(trained.metrics["loss"])))


if __name__ == "__main__":
    main(sys.argv[1])
