"""A population's examples as files: one for each device, or all together as a population on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from device_runtime.errors import InputError
from device_runtime.examples import Examples
from tff_sim.datasets.npz_folder import TEST_FILE
from tff_sim.federated_data import FederatedData
from tff_sim.population import write_population

Progress = Callable[[int, str], None]


def export_files(data: FederatedData, folder: Path, progress: Progress = lambda done, text: None) -> None:
    """Write each client's examples into ``NAME.npz``, and the test examples into ``_test.npz``.

    A device takes its file with --data; the data set ``npz`` reads the folder.

    Args:
        data: what to write.
        folder: made if missing; it must be empty.
        progress: called twenty times or less often, with how many are done and the last one's name.

    Raises:
        InputError: there is something in the folder, or it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{folder}: not empty, so that nothing is mixed or overwritten; choose another --out")
        for done, name in enumerate(data.clients.names, start=1):
            _save(folder / f"{name}.npz", data.clients[name])
            _tell(progress, done, name, len(data.clients))
        _save(folder / TEST_FILE, data.test)
    except OSError as error:
        raise InputError(f"{folder}: can't write there: {error.strerror}; change --out") from None


def export_packed(data: FederatedData, folder: Path, progress: Progress = lambda done, text: None) -> None:
    """Write everything as a population on disk, which the data set ``packed`` reads; arguments as `export_files`."""

    def clients() -> Iterator[tuple[str, Examples]]:
        for done, name in enumerate(data.clients.names, start=1):
            yield name, data.clients[name]
            _tell(progress, done, name, len(data.clients))

    write_population(folder, clients(), data.test, data.name)


def _tell(progress: Progress, done: int, name: str, clients: int) -> None:
    if done % max(1, clients // 20) == 0:
        progress(done, name)


def _save(path: Path, examples: Examples) -> None:
    np.savez(path, x=examples.x, y=examples.y)
