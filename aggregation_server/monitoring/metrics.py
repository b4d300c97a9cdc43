"""Metrics for Prometheus: the fleet's, which are read from the database, and those of this server's process.

The fleet's survive a restart, and are the same from each of several servers on one database: a query takes their
maximum over servers, never their sum. docs/monitoring.md lists all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from platform import python_version

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from aggregation_server.coordination.desk import Desk
from aggregation_server.history import Counts
from aggregation_server.monitoring.figures import Figures, Observer, latest, rounds_over
from aggregation_server.rounds import Phase
from aggregation_server.storage.database import StoreError

PHASES = (Phase.SELECTION.value, Phase.REPORTING.value, Phase.COMMITTING.value, "paused", "complete")
_TASKS = ("training", "evaluation")
_OUTCOMES = ("committed", "abandoned")


def registry_of(desk: Desk, observer: Observer) -> CollectorRegistry:
    """A registry with all but the duration of requests (`aggregation_server.web.measured`)."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Server(desk))
    registry.register(_Fleet(observer))
    return registry


class _Server(Collector):
    """What this process does."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("pocketfed_build_info", "Versions; always 1.", labels=("version", "python"))
        build.add_metric((version("pocketfed"), python_version()), 1)
        yield build
        yield GaugeMetricFamily("pocketfed_queue_length", "Requests that wait for their turn.", self._desk.length)
        turns, text = self._desk.coordinator.turns, "Transactions, and for how long they held the fleet's row."
        yield SummaryMetricFamily("pocketfed_turn_seconds", text, count_value=turns.count, sum_value=turns.seconds)
        yield CounterMetricFamily("pocketfed_turn_requests", "Requests that transactions answered.", turns.requests)
        try:
            free = self._desk.coordinator.spool.free()
        except StoreError:
            return
        yield GaugeMetricFamily("pocketfed_spool_free_bytes", "Bytes free on the disk that reports are kept on.", free)


class _Fleet(Collector):
    """What is in the database; without it, only that it does not answer."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def collect(self) -> Iterator[Metric]:
        name, text = "pocketfed_database_up", "Whether the database answered when it was asked for these figures."
        try:
            metrics = list(self._metrics())
        except StoreError:
            yield GaugeMetricFamily(name, text, 0)
            return
        yield GaugeMetricFamily(name, text, 1)
        yield from metrics

    def _metrics(self) -> Iterator[Metric]:
        store = self._observer.coordinator.store
        figures = self._observer.figures()
        yield _rounds(rounds_over(store))
        yield from _devices_calls(figures.counts)
        yield from _state(figures, self._observer.coordinator.task.round.cohort_size)
        training, evaluation = (latest(store, task) for task in _TASKS)
        loss = GaugeMetricFamily("pocketfed_loss", "Mean loss of the last round of a task.", labels=("task",))
        for task, last in zip(_TASKS, (training, evaluation), strict=True):
            if last.loss is not None:
                loss.add_metric((task,), last.loss)
        yield loss
        if evaluation.accuracy is not None:
            yield from _evaluated(self._observer.coordinator.bundle.manifest.metric, evaluation.accuracy)
        if training.ended is not None:
            name, text = "pocketfed_last_commit_timestamp_seconds", "When the last version was made, since 1970."
            yield GaugeMetricFamily(name, text, training.ended)


def _evaluated(metric: str, mean: float) -> Iterator[Metric]:
    if metric == "accuracy":
        text = "Share of right predictions on the devices' test examples, by the last evaluation."
        yield GaugeMetricFamily("pocketfed_accuracy", text, mean)
    text = "Mean of the model's metric over the devices' test examples, by the last evaluation."
    family = GaugeMetricFamily("pocketfed_evaluation_metric", text, labels=("metric",))
    family.add_metric((metric,), mean)
    yield family


def _rounds(over: dict[tuple[str, str], int]) -> Metric:
    family = CounterMetricFamily("pocketfed_rounds", "Rounds that are over.", labels=("outcome", "task"))
    usual = {(outcome, task): 0 for outcome in _OUTCOMES for task in _TASKS}
    for labels, count in sorted((usual | over).items()):
        family.add_metric(labels, count)
    return family


def _devices_calls(counts: Counts) -> Iterator[Metric]:
    labels = ("result", "reason")
    check_ins = CounterMetricFamily("pocketfed_checkins", "Check-ins, by their answer.", labels=labels)
    rejected = sum(counts.rejected.values())
    check_ins.add_metric(("accepted", ""), counts.accepted)
    check_ins.add_metric(("complete", ""), max(counts.checked_in - counts.accepted - rejected, 0))
    for reason, count in sorted(counts.rejected.items()):
        check_ins.add_metric(("rejected", reason), count)
    yield check_ins
    reports = CounterMetricFamily("pocketfed_reports", "Reports, by their answer.", labels=labels)
    reports.add_metric(("accepted", ""), counts.reported)
    reports.add_metric(("late", ""), counts.late)
    for reason, count in sorted(counts.refused.items()):
        reports.add_metric(("refused", reason), count)
    yield reports
    yield CounterMetricFamily("pocketfed_upload_bytes", "Bytes of reports from devices.", counts.upload_bytes)
    yield CounterMetricFamily("pocketfed_download_bytes", "Bytes of bundles and weights.", counts.download_bytes)


def _state(figures: Figures, seats: int) -> Iterator[Metric]:
    fleet, current = figures.fleet, figures.current
    phase = GaugeMetricFamily("pocketfed_round_phase", "1 for the phase that the fleet is in.", labels=("phase",))
    for name in PHASES:
        phase.add_metric((name,), float(name == figures.phase))
    yield phase
    open_round = (0, 0, 0) if current is None else (current.number, current.cohort, current.reported)
    for (name, text), value in zip(_OPEN_ROUND.items(), open_round, strict=True):
        yield GaugeMetricFamily(name, text, value)
    yield GaugeMetricFamily("pocketfed_round_seats", "Devices that a round accepts at most.", seats)
    yield GaugeMetricFamily("pocketfed_paused", "Whether an operator has paused the fleet.", float(fleet.paused))
    yield GaugeMetricFamily("pocketfed_version", "Number of the version that is in force.", fleet.number)
    if fleet.released is not None:
        yield GaugeMetricFamily("pocketfed_released_version", "Number of the version for users.", fleet.released)
    devices = GaugeMetricFamily("pocketfed_devices", "Devices, by state.", labels=("state",))
    for state, count in figures.devices["states"].items():
        devices.add_metric((state,), count)
    yield devices


_OPEN_ROUND = {
    "pocketfed_round_number": "Number of the open round, or 0.",
    "pocketfed_round_cohort": "Devices that have a seat in the open round.",
    "pocketfed_round_reports": "Reports that count in the open round.",
}
