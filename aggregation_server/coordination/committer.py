"""`Committer`: makes new weights of the reports of a round that has enough of them.

The aggregate is a function of the set of the reports that count, read back from the disk in the order of their devices'
names. So a server that is killed in the middle of it, or another one that takes its place, comes to the same bits; and
nothing is held in memory but sums.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any

from aggregation_server.aggregation.robust import aggregate_round
from aggregation_server.aggregation.state import ServerState
from aggregation_server.coordination.closing import abandon, fields_of, record_of
from aggregation_server.coordination.coordinator import Coordinator
from aggregation_server.rounds import Phase, Round
from aggregation_server.storage.rows import CountedReport, Version
from aggregation_server.storage.spool import LostReportError
from device_runtime.codec import EncodedUpdate, read_update
from device_runtime.errors import IntegrityError

logger = logging.getLogger(__name__)

_TRIES = 10  # to find a report, a second apart


@dataclass(frozen=True)
class Outcome:
    """What a round's reports come to.

    Attributes:
        result: fields of the round's record.
        version: the weights that they make; None of an evaluation.
        failure: why they make nothing, a short word.
    """

    result: dict[str, Any]
    version: Version | None = None
    failure: str = ""


class Committer:
    """Commits rounds, one at a time.

    Args:
        coordinator: whose rounds they are.
        threads: of the aggregation.
    """

    def __init__(self, coordinator: Coordinator, threads: int = 1) -> None:
        self._coordinator = coordinator
        self._threads = threads
        self._lost = (0, 0)  # a round, and how often reports of it were not found

    def commit(self) -> bool:
        """Commit the open round where it has its reports, and nobody else does. The turn after it deletes them.

        Raises:
            StoreError: the database or the disk failed; nothing is lost by trying again.
        """
        coordinator = self._coordinator
        store = coordinator.store
        with store.database.sole_committer() as alone:
            fleet, found = store.snapshot(coordinator.task.round)
            if not alone or found is None or found[0].phase is not Phase.COMMITTING:
                return False
            state = coordinator.state_of(fleet.number, fleet.weights)
            outcome = self._outcome(found[0], state)
            return self._write(found[0], state, outcome)

    def _outcome(self, current: Round, state: ServerState) -> Outcome:
        reports = self._coordinator.store.reports(current.id)
        if current.task == "evaluation":
            return _evaluated(reports)
        return self._trained(current, state, reports)

    def _trained(self, current: Round, state: ServerState, reports: list[CountedReport]) -> Outcome:
        coordinator = self._coordinator
        manifest = coordinator.bundle.manifest

        def read(report: CountedReport) -> EncodedUpdate:
            assert report.spooled is not None  # of a training
            return read_update(coordinator.spool.read(current.id, report.spooled), manifest.tensors, manifest.model_id)

        try:
            key = (coordinator.task.seed, current.number)
            mean, tally = aggregate_round(
                reports, read, manifest.tensors, coordinator.task.aggregation, key, threads=self._threads
            )
        except IntegrityError as error:  # it was valid when it came
            logger.error("round %d: a report is damaged on the disk: %s", current.number, error)
            return Outcome({}, failure="damaged_report")
        except LostReportError as error:  # a folder on the network may be late
            self._lost = (current.id, self._lost[1] + 1 if self._lost[0] == current.id else 1)
            if self._lost[1] < _TRIES:
                raise
            logger.error("round %d: %s", current.number, error)
            return Outcome({}, failure="lost_report")
        result = {"loss": tally.loss, "examples": tally.examples, "clients": tally.clients}
        optimizer = coordinator.task.optimizer
        try:
            after, encoded = coordinator.downlink.next(state, mean, optimizer)
        except IntegrityError as error:
            logger.warning("round %d: %s", current.number, error)
            return Outcome(result, failure="non_finite")
        coordinator.made(after, encoded)
        form = None if encoded is None else (encoded.base, encoded.data)
        moments = optimizer.dump(after.moments, manifest.tensors) or None
        return Outcome(result, Version(after.identity, after.data, moments, form))

    def _write(self, decided: Round, state: ServerState, outcome: Outcome) -> bool:
        coordinator = self._coordinator
        with coordinator.store.ledger(coordinator.task.round) as ledger:
            now = coordinator.clock.agree(ledger.fleet.clock)
            found = ledger.open_round()
            if found is None or found[0] != decided or ledger.fleet.number != state.round_number:
                return False  # it was ended otherwise meanwhile, by an operator or by another server
            current, counts, opened = found
            if outcome.failure:
                abandon(ledger, current.abandoned(outcome.failure, now), counts, opened, now)
                ledger.set_fleet(clock=now)
                return True
            version = outcome.version
            weights = ledger.fleet.weights if version is None else version.weights
            record = replace(record_of(current.committed(now), weights, counts, now - opened), **outcome.result)
            if version is not None:
                ledger.keep_version(version, coordinator.task.keep_versions)
                ledger.set_fleet(number=current.number, weights=weights)
            ledger.end_round(current.committed(now), record, None if version is None else version.optimizer)
            ledger.set_fleet(clock=now)
        fields, number, loss = fields_of(record), record.number, record.loss
        if version is None:
            metric, mean = coordinator.bundle.manifest.metric, _short(record.accuracy)
            logger.info("version %d evaluated: %s %s, loss %s", number, metric, mean, _short(loss), extra=fields)
        else:
            logger.info("round %d committed: %d reports, loss %s", number, record.clients, _short(loss), extra=fields)
        return True


def _short(number: float | None) -> str:
    """A figure as a person reads it; the event's fields have all of its digits."""
    return "unknown" if number is None else f"{number:.4g}"


def _evaluated(reports: list[CountedReport]) -> Outcome:
    """Means over all predictions of all devices; None of one that is no number."""
    said = [report.evaluation for report in reports if report.evaluation is not None]
    count = sum(int(one["count"]) for one in said)
    means = (sum(float(one[name]) for one in said) / count for name in ("loss_sum", "correct"))
    # Each sum was finite, but theirs may overflow; JSON has no word for that.
    loss, accuracy = (mean if math.isfinite(mean) else None for mean in means)
    return Outcome({"loss": loss, "accuracy": accuracy, "examples": count, "clients": len(said)})
