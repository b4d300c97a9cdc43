"""One worker of TensorFlow Federated for all tests of this folder, and a look at the processes of others."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Where TFF has no wheel there is nothing to test but the data; where it has, it is imported here first, because
# its dependencies use what others of its dependencies have deprecated since.
collect_ignore: list[str] = []
if importlib.util.find_spec("tensorflow_federated") is None:
    collect_ignore = [
        "encoding/test_aggregator.py",
        "encoding/test_round.py",
        "test_aggregation.py",
        "test_client_data.py",
        "test_client_model.py",
        "test_client_state.py",
        "test_cohorts.py",
        "test_device_engine.py",
        "test_dropout_round.py",
        "test_enclosure.py",
        "test_examples.py",
        "test_experiment.py",
        "test_fed_avg.py",
        "test_fleet_server.py",
        "test_reproduce.py",
        "test_resume.py",
        "test_server_optimizer.py",
        "test_shared_engine.py",
        "test_sweep.py",
        "test_worker.py",
        "test_workers.py",
    ]
else:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_federated  # noqa: F401


@pytest.fixture(scope="session")
def tff_worker() -> Iterator[None]:
    """TFF's computations run in one `local_worker` from here to the end of the tests."""
    from tff_sim import local_worker

    with local_worker():
        yield


@pytest.fixture(scope="session")
def workers_of() -> Callable[[int], set[int]]:
    """`workers_of(pid)`: the process ids of the TFF workers whose parent is `pid`."""

    def find(parent: int) -> set[int]:
        return {
            int(folder.name)
            for folder in Path("/proc").iterdir()
            if folder.name.isdigit() and _is_running_worker(folder) and _parent(folder) == parent
        }

    return find


@pytest.fixture(scope="session")
def running_worker() -> Callable[[int], bool]:
    """`running_worker(pid)`: whether `pid` is a TFF worker that runs, so neither gone nor a zombie."""
    return lambda pid: _is_running_worker(Path("/proc") / str(pid))


def _is_running_worker(folder: Path) -> bool:
    try:
        return b"worker_binary" in (folder / "cmdline").read_bytes()  # a zombie's command line is empty
    except OSError:
        return False


def _parent(folder: Path) -> int:
    try:
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1
