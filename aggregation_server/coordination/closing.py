"""The end of a round: what is remembered of it."""

from __future__ import annotations

import logging
import time
from typing import Any

from aggregation_server.history import Counts, RoundRecord
from aggregation_server.rounds import Phase, Round
from aggregation_server.storage.ledger import Ledger

logger = logging.getLogger(__name__)


def record_of(current: Round, weights: str, counts: Counts, seconds: float) -> RoundRecord:
    """The record of a round that is over, without what its reports say.

    Args:
        current: committed or abandoned.
        weights: content hash of the weights after it.
        counts: what happened in it.
        seconds: how long it took, by the server's clock.
    """
    end = time.time()
    return RoundRecord(
        number=current.number,
        outcome="committed" if current.phase is Phase.COMMITTED else "abandoned",
        weights=weights,
        started=end - seconds,
        ended=end,
        seconds=seconds,
        task=current.task,
        reason=current.reason,
        cohort=current.cohort,
        counts=counts,
        id=current.id,
    )


def abandon(ledger: Ledger, after: Round, counts: Counts, opened: float, now: float) -> None:
    """Write a round that was abandoned; the weights stay as they were."""
    record = record_of(after, ledger.fleet.weights, counts, now - opened)
    ledger.end_round(after, record)
    fields = fields_of(record)
    logger.warning("round %d (%s) abandoned: %s", after.number, after.task, after.reason, extra=fields)


def fields_of(record: RoundRecord) -> dict[str, Any]:
    """What a log's line about the end of a round says, for programs."""
    counts = record.counts
    return {
        "event": "round_over",
        "round": record.number,
        "round_id": record.id,
        "task": record.task,
        "outcome": record.outcome,
        "reason": record.reason,
        "weights": record.weights,
        "seconds": round(record.seconds, 3),
        "loss": record.loss,
        "accuracy": record.accuracy,
        "examples": record.examples,
        "cohort": record.cohort,
        "reports": record.clients,
        "checked_in": counts.checked_in,
        "late": counts.late,
        "refused": counts.refused,
        "upload_bytes": counts.upload_bytes,
        "download_bytes": counts.download_bytes,
    }
