"""Simulation of Federated Averaging with TensorFlow Federated.

`build_fed_avg` makes a `tff.learning.templates.LearningProcess`, for scripts that have their own loop;
`run_experiment` is a whole experiment with results in files. TensorFlow Federated takes seconds to load, so
each name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tff_sim.algorithm import Algorithm, ServerOptimizer
    from tff_sim.client_data import client_dataset
    from tff_sim.experiment import Experiment, run_experiment
    from tff_sim.fed_avg import build_fed_avg
    from tff_sim.server_optimizer import build_server_optimizer
    from tff_sim.worker import local_worker

__all__ = [
    "Algorithm", "Experiment", "ServerOptimizer",
    "build_fed_avg", "build_server_optimizer", "client_dataset", "local_worker", "run_experiment",
]  # fmt: skip

_HOMES = {
    "Algorithm": "tff_sim.algorithm",
    "Experiment": "tff_sim.experiment",
    "ServerOptimizer": "tff_sim.algorithm",
    "build_fed_avg": "tff_sim.fed_avg",
    "build_server_optimizer": "tff_sim.server_optimizer",
    "client_dataset": "tff_sim.client_data",
    "local_worker": "tff_sim.worker",
    "run_experiment": "tff_sim.experiment",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
