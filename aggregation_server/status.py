"""What the fleet does, as JSON; docs/protocol.md describes the keys."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from aggregation_server.coordinator import Coordinator
from aggregation_server.enrolment import Enrolments
from aggregation_server.history import Counts

_HISTORY = 100


def status_of(coordinator: Coordinator, enrolments: Enrolments) -> dict[str, Any]:
    """The fleet's state, its open round, its devices, and the last rounds that are over.

    Raises:
        StoreError: the database failed.
    """
    task, manifest, store = coordinator.task, coordinator.bundle.manifest, coordinator.store
    fleet = store.fleet()
    found = store.open_round(task.round)
    current, counts = (None, Counts()) if found is None else found
    complete = coordinator.complete
    return {
        "task": {
            "population": coordinator.population,
            "model": manifest.name,
            "model_id": manifest.model_id,
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
        "phase": "complete" if complete else "paused" if current is None or fleet.paused else current.phase.value,
        "round": fleet.number if current is None else current.number,
        "round_task": None if current is None else current.task,
        "cohort": 0 if current is None else current.cohort,
        "reports": 0 if current is None else current.reported,
        "committed_rounds": fleet.number,
        "complete": complete,
        "paused": fleet.paused,
        "released": fleet.released,
        "initial_weights": fleet.initial_weights,
        "weights": fleet.weights,
        "counts": asdict(fleet.counts + counts),
        "round_counts": asdict(counts),
        "devices": enrolments.summary(),
        "history": [record.to_json() for record in store.history(_HISTORY)],
    }
