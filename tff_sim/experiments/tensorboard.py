"""TensorBoard events of a run, in plain TensorFlow."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import tensorflow as tf

from tff_sim.experiments.results import RoundMetrics

FOLDER = "tensorboard"


class Events:
    """Writes each round's figures as scalars, under ``train/``, ``test/``, ``round/`` and ``count/``.

    A run that goes on writes those of its earlier rounds anew, so that no round is in the events twice.

    Args:
        folder: the run's; the events are in ``tensorboard`` in it.
        rows: of the rounds before.
    """

    def __init__(self, folder: Path, rows: Iterable[RoundMetrics] = ()) -> None:
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        self._writer = tf.summary.create_file_writer(str(folder / FOLDER))
        for row in rows:
            self.add(row)

    def add(self, row: RoundMetrics) -> None:
        """Write a round's figures to the disk."""
        scalars = {
            "train/loss": row.train_loss,
            "test/accuracy": row.test_accuracy,
            "test/loss": row.test_loss,
            "round/seconds": row.seconds,
            "round/clients": row.clients,
            "round/examples": row.examples,
            "round/upload_bytes": row.upload_bytes,
            "round/download_bytes": row.download_bytes,
        }
        scalars |= {f"count/{name}": value for name, value in row.counts.items()}
        with self._writer.as_default(step=row.round):
            for name, value in scalars.items():
                tf.summary.scalar(name, value)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
