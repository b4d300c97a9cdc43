"""What a run comes to that nothing disturbs, and PostgreSQL servers of the tests' own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aggregation_server.rounds import RoundConfig
from aggregation_server.task import Task
from device_runtime.bundle import Bundle
from tests.aggregation_server.durability.clients import update_of
from tests.aggregation_server.durability.postgresql import Cluster, running_cluster
from tests.aggregation_server.fleet import Fleet


@pytest.fixture(autouse=True)
def log_of_rounds() -> Iterator[None]:
    """`serve` in this process turns the server's log on; other tests expect it as it was."""
    loggers = [logging.getLogger(name) for name in ("aggregation_server", "uvicorn")]
    before = [(logger.level, logger.handlers) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers = handlers


@pytest.fixture
def undisturbed(bundle: Bundle, tmp_path: Path, make_report: Callable[..., bytes]) -> Callable[..., list[str]]:
    """`undisturbed(names, rounds, …)`: the weights' hashes after each round of these devices, in one server's life."""

    def run(names: list[str], rounds: int, **task: Any) -> list[str]:
        config = RoundConfig(len(names), over_selection=1)
        url = f"sqlite:///{tmp_path / 'undisturbed.db'}"
        fleet = Fleet(bundle, Task(config, rounds=rounds, **task), url, tmp_path / "undisturbed", [0.0], make_report)
        for number in range(1, rounds + 1):
            fleet.join(*names)
            for name in reversed(names):
                assert fleet.report(name, update_of(bundle, name, number)).verdict == "accepted"
            assert fleet.commit()
        hashes = [record.weights for record in fleet.history()]
        fleet.close()
        return hashes

    return run


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Cluster]:
    """A PostgreSQL server of the tests' own; skipped where there is none."""
    with running_cluster() as cluster:
        yield cluster
