"""Transactions whose answer is lost on its way from PostgreSQL: the server can't know what became of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import pytest

from aggregation_server.storage.database import StoreError
from tests.aggregation_server.durability.cut import Way, cuttable
from tests.aggregation_server.durability.postgresql import Cluster
from tests.aggregation_server.fleet import Fleet


@pytest.fixture
def cut_fleet(postgresql: Cluster, make_fleet: Callable[..., Fleet]) -> Iterator[tuple[Fleet, Way]]:
    """A fleet of two devices a round, and its way to the database."""
    url = postgresql.new_database()
    with tempfile.TemporaryDirectory(prefix="pocketfed-") as folder, cuttable(Path(folder), postgresql.socket) as way:
        through = url.replace(urlsplit(url).query, f"host={folder}")
        fleet = make_fleet(goal_count=3, over_selection=1, store_url=through)
        yield fleet, way
        fleet.close()


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_report_whose_transaction_was_cut_counts_once_when_it_is_sent_again(
    cut_fleet: tuple[Fleet, Way], cut: Literal["before", "after"], spool_folder: Path
) -> None:
    fleet, way = cut_fleet
    fleet.join("a", "b", "c")
    fleet.report("a", value=1.0)
    way.cut = cut
    with pytest.raises(StoreError):
        fleet.report("b", value=2.0)
    assert way.cut is None
    reply = fleet.report("b", value=2.0)
    assert (reply.verdict, reply.reason) == (("refused", "duplicate") if cut == "after" else ("accepted", ""))
    fleet.report("c", value=6.0)
    (segment,) = spool_folder.glob("round-*/*.reports")
    assert segment.stat().st_size == sum(
        report.spooled.length for report in fleet.store.reports(1) if report.spooled is not None
    )
    assert fleet.commit()
    (record,) = fleet.history()
    assert (record.outcome, record.clients, record.counts.reported) == ("committed", 3, 3)
    first = fleet.coordinator.bundle.initial_weights()
    for weights, before in zip(fleet.coordinator.state.weights, first, strict=True):
        assert (weights == before + 3).all()


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_round_whose_commit_was_cut_is_committed_once(
    cut_fleet: tuple[Fleet, Way], cut: Literal["before", "after"]
) -> None:
    fleet, way = cut_fleet
    fleet.join("a", "b", "c")
    for name in "abc":
        fleet.report(name, value=1.0)
    way.cut = cut
    with pytest.raises(StoreError):
        fleet.committer.commit()
    assert fleet.committer.commit() == (cut == "before")
    fleet.tick()
    (record,) = fleet.history()
    assert (record.number, record.outcome, record.clients) == (1, "committed", 3)
    assert fleet.status()["phase"] == "selection"
    assert fleet.status()["round"] == 2


def test_the_right_to_commit_is_free_before_postgresql_hears_that_its_session_has_ended(
    cut_fleet: tuple[Fleet, Way],
) -> None:
    fleet, way = cut_fleet
    way.linger = 2.0
    for _ in range(3):
        with fleet.store.database.sole_committer() as alone:
            assert alone
