"""The metrics: they say what the status says, survive a restart, and are all that the dashboard asks for."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from aggregation_server.coordination.committer import Committer
from aggregation_server.coordination.desk import Desk
from aggregation_server.monitoring.figures import Observer
from aggregation_server.monitoring.metrics import PHASES, registry_of
from aggregation_server.rounds import RoundConfig
from device_runtime.messages import EvaluationReport
from tests.aggregation_server.fleet import Fleet
from tests.aggregation_server.running import Running

MakeFleet = Callable[..., Fleet]
Start = Callable[..., Running]
GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
PAGE = Path(__file__).parents[2] / "docs" / "monitoring.md"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def _registry(fleet: Fleet) -> CollectorRegistry:
    coordinator = fleet.coordinator
    desk = Desk(coordinator, Committer(coordinator))
    return registry_of(desk, Observer(coordinator, fleet.enrolments, lambda: fleet.now[0]))


def _parsed(text: str, parse: Callable[[str], Any] = text_string_to_metric_families) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def _samples(fleet: Fleet) -> Samples:
    return _parsed(generate_latest(_registry(fleet)).decode())


def _value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


def _evaluation(number: int) -> bytes:
    return json.dumps(EvaluationReport(number, 10, 8, 3.0).to_json()).encode()


@pytest.fixture
def lived(make_fleet: MakeFleet) -> Fleet:
    """A round, an evaluation, an abandoned round, and one that is open."""
    fleet = make_fleet(evaluate_every=1, reporting_timeout=60, retry_seconds=1)
    fleet.join("a", "b", "c")
    fleet.check_in("d")
    assert fleet.report("a", b"rubbish").verdict == "refused"
    for name in "ab":
        fleet.report(name, loss=0.5)
    assert fleet.report("c").verdict == "aborted"
    fleet.commit()
    fleet.join("a", "b", "c")
    for name in "ab":
        assert fleet.report(name, _evaluation(1)).verdict == "accepted"
    fleet.commit()
    fleet.join("a", "b", "c")
    fleet.tick(61)
    fleet.join("a")
    return fleet


def test_the_fleet_s_figures(lived: Fleet) -> None:
    samples, counts = _samples(lived), lived.status()["counts"]
    assert _value(samples, "pocketfed_database_up") == 1
    rounds = {labels: value for (name, labels), value in samples.items() if name == "pocketfed_rounds_total"}
    assert rounds == {
        frozenset({("outcome", "committed"), ("task", "training")}): 1,
        frozenset({("outcome", "committed"), ("task", "evaluation")}): 1,
        frozenset({("outcome", "abandoned"), ("task", "training")}): 1,
        frozenset({("outcome", "abandoned"), ("task", "evaluation")}): 0,
    }
    assert _value(samples, "pocketfed_reports_total", result="accepted", reason="") == 4
    assert _value(samples, "pocketfed_reports_total", result="late", reason="") == 1
    assert _value(samples, "pocketfed_reports_total", result="refused", reason="truncated") == 1
    assert _value(samples, "pocketfed_checkins_total", result="accepted", reason="") == counts["accepted"] == 10
    assert _value(samples, "pocketfed_checkins_total", result="rejected", reason="cohort_full") == 1
    assert _value(samples, "pocketfed_checkins_total", result="complete", reason="") == 0
    assert _value(samples, "pocketfed_upload_bytes_total") == counts["upload_bytes"]
    assert _value(samples, "pocketfed_download_bytes_total") == counts["download_bytes"]
    assert _value(samples, "pocketfed_version") == 1
    assert _value(samples, "pocketfed_released_version") is None
    assert _value(samples, "pocketfed_loss", task="training") == 0.5
    assert _value(samples, "pocketfed_loss", task="evaluation") == pytest.approx(0.3)
    assert _value(samples, "pocketfed_accuracy") == pytest.approx(0.8)
    assert _value(samples, "pocketfed_evaluation_metric", metric="accuracy") == pytest.approx(0.8)
    assert _value(samples, "pocketfed_last_commit_timestamp_seconds") == lived.history()[0].ended
    assert _value(samples, "pocketfed_devices", state="active") == 4


def test_turns(make_fleet: MakeFleet) -> None:
    """They are counted with the requests that they answer, and their time is a part of all time."""
    began = time.perf_counter()
    fleet = make_fleet()
    before = _samples(fleet)
    for _ in range(3):
        fleet.join("a", "b")
    after, seconds = _samples(fleet), time.perf_counter() - began

    def more(name: str) -> float:
        return (_value(after, name) or 0.0) - (_value(before, name) or 0.0)

    asked = [value for (name, labels), value in after.items() if name == "pocketfed_checkins_total"]
    assert more("pocketfed_turn_requests_total") >= sum(asked) == 6
    assert 0 < more("pocketfed_turn_seconds_count") <= more("pocketfed_turn_requests_total")
    assert 0 < more("pocketfed_turn_seconds_sum") < seconds


def test_the_open_round(lived: Fleet) -> None:
    samples = _samples(lived)
    assert {phase: _value(samples, "pocketfed_round_phase", phase=phase) for phase in PHASES} == {
        "selection": 1,
        "reporting": 0,
        "committing": 0,
        "paused": 0,
        "complete": 0,
    }
    assert _value(samples, "pocketfed_round_number") == 2
    assert _value(samples, "pocketfed_round_cohort") == 1
    assert _value(samples, "pocketfed_round_seats") == 3
    assert _value(samples, "pocketfed_round_reports") == 0
    lived.operations.pause()
    lived.operations.release(1)
    lived.tick()
    samples = _samples(lived)
    assert _value(samples, "pocketfed_paused") == 1
    assert _value(samples, "pocketfed_round_phase", phase="paused") == 1
    assert _value(samples, "pocketfed_released_version") == 1


def test_a_counter_never_goes_back(make_fleet: MakeFleet) -> None:
    """Prometheus takes a counter that falls for one that began anew, and adds all of it again."""
    fleet = make_fleet()
    fleet.check_in("a", tasks=())  # rejected: it is counted in a round that nobody is in
    before = fleet.status()["counts"]
    assert before["rejected"] == {"other_task": 1}
    fleet.operations.pause()
    fleet.tick()
    assert fleet.status()["counts"] == before


def test_counters_survive_a_restart(lived: Fleet, make_fleet: MakeFleet) -> None:
    before = _samples(lived)
    lived.close()
    again = _samples(make_fleet(evaluate_every=1))
    fleet_s = {key for key in before if re.fullmatch("pocketfed_(?!turn_).*_total", key[0])}
    assert len(fleet_s) >= 10
    assert {key: again[key] for key in fleet_s} == {key: before[key] for key in fleet_s}


def test_a_database_that_fails_leaves_the_process_s_metrics(lived: Fleet, tmp_path: Path) -> None:
    registry = _registry(lived)
    lived.store.close()
    (tmp_path / "server.db").rename(tmp_path / "elsewhere")
    (tmp_path / "server.db").write_bytes(b"this is no database")
    samples = _parsed(generate_latest(registry).decode())
    assert _value(samples, "pocketfed_database_up") == 0
    assert _value(samples, "pocketfed_queue_length") == 0
    assert _value(samples, "pocketfed_version") is None
    assert {name for name, _ in samples} >= {"process_resident_memory_bytes", "pocketfed_build_info"}


def test_devices_are_not_counted_all_the_time(make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = make_fleet()
    observer = Observer(fleet.coordinator, fleet.enrolments, lambda: fleet.now[0])
    count, summary = [0], fleet.enrolments.summary

    def slow() -> dict[str, dict[str, int]]:
        count[0] += 1
        fleet.now[0] += 2  # as it may take where there are very many
        return summary()

    monkeypatch.setattr(fleet.enrolments, "summary", slow)
    fleet.join("a")
    assert observer.devices()["states"]["active"] == 1
    fleet.join("b")
    fleet.now[0] += 37
    assert observer.devices()["states"]["active"] == 1
    fleet.now[0] += 1
    assert observer.devices()["states"]["active"] == 2
    assert count == [2]


def test_devices_that_say_what_they_like_do_not_fill_the_status(make_fleet: MakeFleet) -> None:
    fleet = make_fleet()
    observer = Observer(fleet.coordinator, fleet.enrolments, lambda: fleet.now[0])
    named = {f"runtime {number:03}": 1 for number in range(40)} | {"usual": 7}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleet.enrolments, "summary", lambda: {"states": {"active": 47}, "runtimes": named})
        runtimes = observer.devices()["runtimes"]
    assert list(runtimes.items())[:2] == [("usual", 7), ("runtime 000", 1)]
    assert len(runtimes) == 31 and runtimes["others"] == 11


def test_metrics_over_http_are_for_people(start_server: Start) -> None:
    server = start_server(RoundConfig(goal_count=2))
    assert server.nobody.get("/metrics").status_code == 401
    assert server.device("a").get("/metrics").status_code == 401
    for client in (server.viewer, server.operator):
        answer = client.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        assert answer.headers["cache-control"] == "no-store"
    samples = _parsed(answer.text)
    name = "pocketfed_request_duration_seconds_count"
    assert _value(samples, name, route="/v1/enrol", status="200") == 1
    assert _value(samples, name, route="/metrics", status="401") == 2
    server.checked_in("a")
    server.viewer.get("/v1/weights/" + "0" * 64)
    for path in ("/nothing", "/v1/check-in/or-not"):
        assert server.viewer.get(path).status_code == 404
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    samples = _parsed(server.viewer.get("/metrics", headers=accept).text, parse_openmetrics)
    assert _value(samples, name, route="/v1/check-in", status="200") == 1
    assert _value(samples, name, route="/v1/weights/{identity}", status="404") == 1
    assert _value(samples, name, route="none", status="404") == 2
    assert _value(samples, "pocketfed_request_duration_seconds_sum", route="/v1/check-in", status="200") is not None


def _named(text: str) -> set[str]:
    return set(re.findall(r"\b(?:pocketfed|process)_[a-z_]+\b", text))


def _exported(fleet: Fleet) -> set[str]:
    http = {f"pocketfed_request_duration_seconds_{part}" for part in ("bucket", "count", "sum")}
    return {name for name, _ in _samples(fleet)} | http


def test_all_that_the_dashboard_asks_for_is_exported(lived: Fleet) -> None:
    lived.operations.release(1)
    dashboard = json.loads((GRAFANA / "pocketfed.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(queries) >= len(panels) >= 12
    assert _named(" ".join(queries)) - _exported(lived) == set()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in panels:  # it shows whatever source of data the reader chooses, at a place of its own
        assert panel["datasource"] == {"type": "prometheus", "uid": "${source}"}
        assert panel["title"] and panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def test_rules_and_documentation_name_what_is_exported(lived: Fleet) -> None:
    lived.operations.release(1)
    exported = _exported(lived)
    rules = yaml.safe_load((GRAFANA / "alerts.yml").read_text())
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    assert len(expressions) >= 5
    assert _named(" ".join(expressions)) - exported == set()
    table = {name for line in PAGE.read_text().splitlines() if line.startswith("| `") for name in _named(line)}
    ours = {name for name in exported if name.startswith("pocketfed_")}
    without_parts = {re.sub(r"(_seconds)_(bucket|count|sum)$", r"\1", name) for name in ours}
    assert table == without_parts
    scrape = yaml.safe_load((GRAFANA / "prometheus.yml").read_text())
    job = scrape["scrape_configs"][0]
    assert job["metrics_path"] == "/metrics" and job["basic_auth"]["username"] == "viewer"
    assert scrape["rule_files"] == ["alerts.yml"]
