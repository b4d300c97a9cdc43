"""Reports on disk: they are there from their acknowledgement until the end of their round, and no longer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregation_server.storage.spool import LostReportError, Spool
from device_runtime.errors import InputError
from tests.aggregation_server.fleet import Fleet

MakeFleet = Callable[..., Fleet]


def rounds_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("round-*"))


def test_reports_are_deleted_when_their_round_is_committed(make_fleet: MakeFleet, spool_folder: Path) -> None:
    fleet = make_fleet(goal_count=2, over_selection=1)
    fleet.join("a", "b")
    fleet.report("a")
    assert rounds_in(spool_folder) == ["round-1"]
    fleet.report("b")
    fleet.commit()
    assert rounds_in(spool_folder) == []
    if Path("/proc/self/fd").exists():
        opened = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        assert not [path for path in opened if ".reports" in path]  # nor does an open file keep them


def test_reports_are_their_server_s_owner_s_alone(make_fleet: MakeFleet, spool_folder: Path) -> None:
    before = os.umask(0o022)
    try:
        fleet = make_fleet(goal_count=2, over_selection=1)
        fleet.join("a", "b")
        fleet.report("a")
    finally:
        os.umask(before)
    (report,) = spool_folder.glob("round-*/*")
    assert [path.stat().st_mode & 0o777 for path in (spool_folder, report.parent, report)] == [0o700, 0o700, 0o600]


@pytest.mark.parametrize("end", ["timeout", "rollback"])
def test_reports_are_deleted_when_their_round_is_abandoned(make_fleet: MakeFleet, spool_folder: Path, end: str) -> None:
    fleet = make_fleet(goal_count=2, over_selection=1, minimum_reports=2, keep_versions=2)
    fleet.run_round("a", "b")
    fleet.join("a", "b")
    fleet.report("a")
    assert rounds_in(spool_folder) == ["round-2"]
    if end == "rollback":
        fleet.operations.rollback(0)
        fleet.tick()
    else:
        fleet.tick(200.0)
    assert fleet.history()[-1 if end == "timeout" else -2].outcome == "abandoned"
    assert rounds_in(spool_folder) == []


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_server_killed_between_commit_and_deletion_deletes_when_it_starts_again(
    make_fleet: MakeFleet, spool_folder: Path, rounds: int
) -> None:
    fleet = make_fleet(goal_count=2, over_selection=1, rounds=rounds)
    fleet.join("a", "b")
    fleet.report("a")
    fleet.report("b")
    assert fleet.committer.commit()
    fleet.close()  # in this instant
    assert rounds_in(spool_folder) == ["round-1"]
    fleet = make_fleet(goal_count=2, over_selection=1, rounds=rounds)
    assert fleet.status()["complete"] == (rounds == 1)  # also where no other round follows
    assert rounds_in(spool_folder) == []


def test_reports_of_the_open_round_survive_a_start(make_fleet: MakeFleet, spool_folder: Path) -> None:
    fleet = make_fleet(goal_count=2, over_selection=1)
    fleet.join("a", "b")
    fleet.report("a", value=1.0)
    tokens = fleet.tokens
    fleet.close()
    fleet = make_fleet(goal_count=2, over_selection=1)
    fleet.tokens = tokens
    assert fleet.report("b", value=3.0).verdict == "accepted"
    assert len(list(spool_folder.glob("round-1/*.reports"))) == 2  # a server's life has its own file
    assert fleet.commit()
    (record,) = fleet.history()
    assert record.clients == 2


def test_a_round_whose_reports_are_lost_is_abandoned_after_some_tries(
    make_fleet: MakeFleet, spool_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = make_fleet(goal_count=2, over_selection=1)
    fleet.join("a", "b")
    fleet.report("a")
    fleet.report("b")
    (segment,) = spool_folder.glob("round-1/*.reports")
    content = segment.read_bytes()
    segment.write_bytes(content[:-1])
    for _ in range(5):
        with pytest.raises(LostReportError, match=f"{segment}: a report of {len(content) // 2} bytes is cut off"):
            fleet.committer.commit()
    segment.unlink()
    for _ in range(4):
        with pytest.raises(LostReportError, match=f"{segment}: the file with reports that count is not there"):
            fleet.committer.commit()
    assert fleet.commit()
    (record,) = fleet.history()
    assert (record.outcome, record.reason) == ("abandoned", "lost_report")
    assert "is not there" in caplog.text
    fleet.run_round("a", "b")


def test_a_report_that_is_found_in_the_end_counts(make_fleet: MakeFleet, spool_folder: Path) -> None:
    fleet = make_fleet(goal_count=2, over_selection=1)
    fleet.join("a", "b")
    fleet.report("a")
    fleet.report("b")
    folder, away = spool_folder / "round-1", spool_folder / "away"
    folder.rename(away)
    with pytest.raises(LostReportError):
        fleet.committer.commit()
    away.rename(folder)
    assert fleet.commit()


def test_another_folder_is_refused_while_reports_wait_in_the_first_one(
    make_fleet: MakeFleet, spool_folder: Path, tmp_path: Path
) -> None:
    fleet = make_fleet(goal_count=2, over_selection=1)
    fleet.join("a", "b")
    fleet.close()
    other = tmp_path / "other"
    make_fleet(goal_count=2, over_selection=1, spool=other).close()  # nothing is in the first one yet
    fleet = make_fleet(goal_count=2, over_selection=1, spool=other)
    fleet.join("a", "b")
    fleet.report("a")
    fleet.close()
    known = (other / "identity").read_text().strip()
    with pytest.raises(InputError) as caught:
        make_fleet(goal_count=2, over_selection=1)
    assert str(caught.value) == (
        f"{spool_folder}: not the folder with this fleet's reports; give all its servers the same --spool, or where"
        f" that is lost with its reports, write {known} into {spool_folder / 'identity'}"
    )
    moved = other.rename(tmp_path / "moved")
    assert make_fleet(goal_count=2, over_selection=1, spool=moved).status()["reports"] == 1


def test_a_folder_that_can_not_be_used_is_refused(tmp_path: Path) -> None:
    Spool(tmp_path).close()
    (tmp_path / "identity").write_text("what?\n")
    with pytest.raises(InputError) as caught:
        Spool(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'identity'}: expected 32 hexadecimal digits; delete it where no reports wait in this folder"
    )
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match=f"{file / 'spool'}: can't keep reports there: Not a directory; choose"):
        Spool(file / "spool")


def test_two_servers_that_start_at_once_agree_on_the_folder_s_identity(tmp_path: Path) -> None:
    spools = [Spool(tmp_path) for _ in range(2)]
    assert spools[0].identity == spools[1].identity
    assert sorted(path.name for path in tmp_path.iterdir()) == ["identity"]


@settings(max_examples=30)
@given(
    turns=st.lists(
        st.tuples(
            st.integers(1, 3),
            st.lists(st.binary(max_size=20), min_size=1, max_size=3),
            st.sampled_from(["counts", "does not count", "killed", "killed and counts"]),
        ),
        max_size=12,
    )
)
def test_what_counts_can_be_read_whatever_came_between(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[int, list[bytes], str]]
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder)
    counted = []
    for round_id, reports, fate in sorted(turns, key=lambda turn: turn[0]):
        places = spool.append(round_id, reports)
        if "counts" in fate.split():
            counted += [(round_id, place, report) for place, report in zip(places, reports, strict=True)]
        if "killed" in fate:
            spool = Spool(folder)  # the other one is left as it is
        elif fate == "counts":
            spool.keep()
        else:
            ends = [place.place + place.length for _, place, _ in counted if place.segment == places[0].segment]
            spool.cut(max(ends, default=0))
        for number, place, report in counted:
            assert spool.read(number, place) == report
    last = max((round_id for round_id, _, _ in turns), default=0)
    spool.forget_before(last)
    assert set(rounds_in(folder)) <= {f"round-{last}"}
    spool.close()
