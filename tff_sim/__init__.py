"""Simulation of Federated Averaging with TensorFlow Federated.

`build_fed_avg` makes a `tff.learning.templates.LearningProcess`, for scripts that have their own loop;
`run_experiment` is a whole experiment with results in files. TensorFlow Federated takes seconds to load, so
each name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tff_sim.algorithms.aggregator_factory import AlgorithmFactory
    from tff_sim.algorithms.algorithm import Algorithm, ServerOptimizer
    from tff_sim.algorithms.client_data import client_dataset
    from tff_sim.algorithms.fed_avg import build_fed_avg, build_server_update
    from tff_sim.algorithms.schedules import Schedule, work_of
    from tff_sim.algorithms.server_optimizer import build_server_optimizer
    from tff_sim.encoding.aggregator import EncodedMeanFactory
    from tff_sim.experiments.data_settings import Data
    from tff_sim.experiments.experiment import Experiment
    from tff_sim.experiments.runner import run_experiment
    from tff_sim.workers.addresses import Workers, parse_addresses
    from tff_sim.workers.local import local_worker
    from tff_sim.workers.remote import remote_workers
    from tff_sim.world import World

__all__ = [
    "Algorithm", "AlgorithmFactory", "Data", "EncodedMeanFactory", "Experiment", "Schedule", "ServerOptimizer",
    "Workers", "World", "build_fed_avg", "build_server_optimizer", "build_server_update", "client_dataset",
    "local_worker", "parse_addresses", "remote_workers", "run_experiment", "work_of",
]  # fmt: skip

_HOMES = {
    "Algorithm": "tff_sim.algorithms.algorithm",
    "AlgorithmFactory": "tff_sim.algorithms.aggregator_factory",
    "Data": "tff_sim.experiments.data_settings",
    "EncodedMeanFactory": "tff_sim.encoding.aggregator",
    "Experiment": "tff_sim.experiments.experiment",
    "Schedule": "tff_sim.algorithms.schedules",
    "ServerOptimizer": "tff_sim.algorithms.algorithm",
    "Workers": "tff_sim.workers.addresses",
    "World": "tff_sim.world",
    "build_fed_avg": "tff_sim.algorithms.fed_avg",
    "build_server_optimizer": "tff_sim.algorithms.server_optimizer",
    "build_server_update": "tff_sim.algorithms.fed_avg",
    "client_dataset": "tff_sim.algorithms.client_data",
    "local_worker": "tff_sim.workers.local",
    "parse_addresses": "tff_sim.workers.addresses",
    "remote_workers": "tff_sim.workers.remote",
    "run_experiment": "tff_sim.experiments.runner",
    "work_of": "tff_sim.algorithms.schedules",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
