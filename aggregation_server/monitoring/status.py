"""What the fleet does, as JSON; docs/protocol.md describes the keys."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from aggregation_server.monitoring.figures import Observer


def status_of(observer: Observer, history: int) -> dict[str, Any]:
    """The fleet's state, its open round, its devices, and the last `history` rounds that are over.

    Raises:
        StoreError: the database failed.
    """
    coordinator = observer.coordinator
    task, manifest = coordinator.task, coordinator.bundle.manifest
    figures = observer.figures()
    fleet, current = figures.fleet, figures.current
    return {
        "task": {
            "population": coordinator.population,
            "model": manifest.name,
            "model_id": manifest.model_id,
            "metric": manifest.metric,
            "bundle": coordinator.bundle.identity,
            "work": task.work.to_json(),
            "seed": task.seed,
            "downlink": task.downlink,
            "rounds": task.rounds,
            "evaluate_every": task.evaluate_every,
            "participation_seconds": task.participation_seconds,
            "cohort_size": task.round.cohort_size,
            **asdict(task.round),
        },
        "phase": figures.phase,
        "round": fleet.number if current is None else current.number,
        "round_task": None if current is None else current.task,
        "cohort": 0 if current is None else current.cohort,
        "reports": 0 if current is None else current.reported,
        "committed_rounds": fleet.number,
        "complete": figures.complete,
        "paused": fleet.paused,
        "released": fleet.released,
        "initial_weights": fleet.initial_weights,
        "weights": fleet.weights,
        "counts": asdict(figures.counts),
        "round_counts": asdict(figures.round_counts),
        "devices": figures.devices,
        "history": [record.to_json() for record in coordinator.store.history(history)] if history else [],
    }
