"""The time of rounds is a server's own: a wall clock that jumps changes nothing, and a restart carries it on."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregation_server.rounds import RoundConfig
from aggregation_server.task import Task
from device_runtime.bundle import Bundle
from device_runtime.messages import Enrolment
from tests.aggregation_server.fleet import Fleet, secret_of

YEAR = 365 * 86_400.0
NAMES = ("a", "b", "c")
TASK = Task(RoundConfig(2, selection_timeout=20.0, reporting_timeout=40.0), participation_seconds=15.0)
MakeReport = Callable[..., bytes]

events = st.one_of(
    st.tuples(st.sampled_from(["check-in", "report", "configuration"]), st.sampled_from(NAMES)),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 10.0, 19.5, 25.0, 39.0])),
    st.tuples(st.just("jump"), st.floats(-50 * YEAR, 50 * YEAR)),
    st.tuples(st.sampled_from(["commit", "restart"]), st.none()),
)


def played(bundle: Bundle, make_report: MakeReport, script: list[tuple[str, Any]], jumps: bool) -> list[Any]:
    """All that devices were told and all that became of the rounds, but for the times for people to read."""
    wall, monotonic = [1.7e9], [50.0]
    told: list[Any] = []
    tokens: dict[str, str] = {}

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(time, "time", lambda: wall[0])

        def start() -> Fleet:
            monotonic[0] = 50.0  # a machine that was started anew
            return Fleet(bundle, TASK, f"sqlite:///{folder}/server.db", Path(folder) / "spool", monotonic, make_report)

        fleet = start()
        for event, what in script:
            fleet.tokens = tokens
            if event == "jump":
                wall[0] += what * jumps
            elif event == "wait":
                fleet.tick(what)
            elif event == "commit":
                told.append(fleet.commit())
            elif event == "restart":
                fleet.close()
                fleet = start()
            elif event == "check-in":
                (reply,) = fleet.check_in(what)
                told.append((reply.decision, reply.reason, reply.round_number, reply.retry_after_seconds))
            elif what in tokens:
                answer = fleet.report(what) if event == "report" else fleet.configuration(what)
                told.append(answer.to_json())
        told.append(fleet.status()["phase"])
        told += [{**record.to_json(), "started": 0, "ended": 0} for record in fleet.history()]
        fleet.close()
    return told


@settings(max_examples=6)
@given(script=st.lists(events, min_size=5, max_size=30))
def test_a_wall_clock_that_jumps_changes_nothing(
    bundle: Bundle, make_report: MakeReport, script: list[tuple[str, Any]]
) -> None:
    assert played(bundle, make_report, script, jumps=True) == played(bundle, make_report, script, jumps=False)


def test_a_round_has_its_whole_time_whatever_the_wall_clock_says(
    make_fleet: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make_fleet(goal_count=2, over_selection=1, reporting_timeout=40.0)
    fleet.join("a", "b")
    for jump in (YEAR, -YEAR):
        monkeypatch.setattr(time, "time", lambda jump=jump: 1.7e9 + jump)
        fleet.tick(19.0)
        assert fleet.status()["phase"] == "reporting"
        assert fleet.configuration("a").work["deadline_seconds"] <= 40.0 - 19.0  # type: ignore[index]
    fleet.tick(2.5)
    (record,) = fleet.history()
    assert (record.reason, record.seconds) == ("reporting_timeout", 40.5)


def test_time_stands_still_while_no_server_runs(
    bundle: Bundle, make_report: MakeReport, store_url: str, spool_folder: Path
) -> None:
    task = Task(RoundConfig(2, over_selection=1, reporting_timeout=40.0))
    fleet = Fleet(bundle, task, store_url, spool_folder, [9e6], make_report)
    fleet.join("a", "b")
    fleet.tick(30.0)
    fleet.close()
    for monotonic in ([3.0], [7e6]):  # as machines count that were started at different times
        fleet = Fleet(bundle, task, store_url, spool_folder, monotonic, make_report)
        fleet.tick(4.5)
        assert fleet.status()["phase"] == "reporting"
        fleet.close()
    fleet = Fleet(bundle, task, store_url, spool_folder, [0.0], make_report)
    fleet.tick(1.5)
    (record,) = fleet.history()
    assert (record.reason, record.seconds) == ("reporting_timeout", 40.5)
    fleet.close()


def test_an_enrolment_code_is_good_for_its_hours_of_the_server_s_time(
    make_fleet: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make_fleet()
    first, second = fleet.enrolments.new_codes(2, hours=1)
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + 50 * YEAR)
    fleet.tick(3500.0)
    assert fleet.enrolments.enrol(Enrolment(first, "new-1", secret_of("new-1"))).verdict == "enrolled"
    monkeypatch.setattr(time, "time", lambda: 0.0)
    fleet.tick(200.0)
    assert fleet.enrolments.enrol(Enrolment(second, "new-2", secret_of("new-2"))).reason == "code"
