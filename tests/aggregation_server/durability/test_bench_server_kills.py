"""`pocketfed bench server-kills` at its smallest, and that each of its checks finds what it looks for."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks import server_kills
from benchmarks.server_kills import Account
from cli.main import main
from device_runtime.bundle import Bundle
from tests.aggregation_server.fleet import Fleet

SEED = 123  # both kills come soon, the first one before the server listens


def _record(**fields: Any) -> Callable[[Any], None]:
    """Change the record of round 2."""
    return lambda fleet: fleet.history[1].update(fields)


def _report(delta: int) -> Callable[[Any], None]:
    """Have a device heard of its report in round 2 once more, or not at all."""

    def tamper(fleet: Any) -> None:
        log: Path = fleet.folder / "device-0.log"
        lines = log.read_text().splitlines()
        (line,) = [one for one in lines if '"reported"' in one and json.loads(one)["round"] == 2]
        log.write_text("\n".join([*lines, line] if delta > 0 else [one for one in lines if one != line]))

    return tamper


def _reports_counted(number: int) -> Callable[[Any], None]:
    return lambda fleet: fleet.history[1]["counts"].update(reported=number)


def _spooled(fleet: Any) -> None:
    (fleet.folder / "spool" / "round-2").mkdir()


TAMPERED: dict[str, tuple[Callable[[Any], None], list[str]]] = {
    "nothing": (lambda _: None, []),
    "abandoned": (_record(outcome="abandoned"), ["round 2 is abandoned with the number 2"]),
    "made-twice": (_record(number=1), ["round 2 is committed with the number 1"]),
    "not-added-up": (
        _record(clients=1),
        ["round 2: 2 reports were acknowledged, 2 counted, 1 added up, of 2 devices"],
    ),
    "counted-too-often": (
        _reports_counted(3),
        ["round 2: 2 reports were acknowledged, 3 counted, 2 added up, of 2 devices"],
    ),
    "acknowledged-twice": (
        _report(+1),
        [
            "device 0: 2 acknowledgements in round 2",
            "round 2: 3 reports were acknowledged, 2 counted, 2 added up, of 2 devices",
        ],
    ),
    "never-acknowledged": (_report(-1), ["round 2: 1 reports were acknowledged, 2 counted, 2 added up, of 2 devices"]),
    "other-weights": (
        _record(weights="0" * 64),
        ["the weights after round 2 are others than those of the undisturbed run"],
    ),
    "left-behind": (_spooled, ["reports outlived their rounds: spool/round-2"]),
}


def _cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if "│" in line]


def test_two_kills_are_survived_and_what_is_wrong_would_be_found(
    digits_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, list[str]] = {}
    compare = server_kills._compare

    def compared(disturbed: Any, undisturbed: Any, account: Account) -> None:
        """The comparison, and once more with each thing in what the run left changed."""
        compare(disturbed, undisturbed, account)
        for name, (tamper, _) in TAMPERED.items():
            fleet, told = copy.copy(disturbed), Account(devices=account.devices)
            fleet.history, fleet.folder = copy.deepcopy(disturbed.history), tmp_path / name
            shutil.copytree(disturbed.folder, fleet.folder)
            tamper(fleet)
            compare(fleet, undisturbed, told)
            found[name] = told.faults

    monkeypatch.setattr(server_kills, "_compare", compared)
    monkeypatch.setattr(server_kills, "exported", lambda _model, _folder: (digits_bundle.path, 0.0))  # once is enough
    out = tmp_path / "kills.json"
    options = ["--kills", "2", "--devices", "2", "--seed", str(SEED), "--out", str(out)]
    assert main(["bench", "server-kills", *options]) == 0
    assert found == {name: faults for name, (_, faults) in TAMPERED.items()}
    account = json.loads(out.read_text())
    assert (account["killed"], account["devices"], account["faults"]) == (2, 2, [])
    assert sum(account["kills"].values()) == 2 and account["kills"]["its start"] == 1
    assert account["rounds"] >= 2 and account["reports"] == 2 * account["rounds"]
    first, last = account["losses"]
    assert first > last > 0
    output = capsys.readouterr()
    assert _cells(output.out) == [
        ["kills", "2"],
        *([f"during {phase}", str(count)] for phase, count in account["kills"].items()),
        ["devices", "2"],
        ["rounds committed", str(account["rounds"])],
        ["reports acknowledged", str(account["reports"])],
        ["loss, first and last round", f"{first:.3f}, {last:.3f}"],
        ["seconds", f"{account['seconds']:.0f}"],
        ["faults", "0"],
    ]
    assert "killing 2/2  0 faults" in output.err


def test_reports_that_a_kill_left_incomplete_are_found(
    make_fleet: Callable[..., Fleet], bundle: Bundle, tmp_path: Path
) -> None:
    """A round with one report of two, as a kill would leave it."""
    left = server_kills._Fleet(bundle, tmp_path, tmp_path / "fleet", 2)
    url, spool = f"sqlite:///{left.folder / 'server.db'}", left.folder / "spool"
    fleet = make_fleet(goal_count=2, over_selection=1, store_url=url, spool=spool)
    fleet.join("a", "b")
    fleet.report("a")
    account = Account(devices=2)
    assert left._phase(account) == "reporting, 1 of 2 reports"
    fleet.close()
    assert account.faults == []
    (segment,) = spool.glob("round-1/*.reports")
    os.truncate(segment, segment.stat().st_size - 1)
    left._phase(account)
    assert account.faults == ["round 1: a report that counts is not on the disk"]
    with closing(sqlite3.connect(left.folder / "server.db")) as database:
        database.execute("UPDATE participants SET reported = 0")
        database.commit()
    left._phase(account)
    assert account.faults[1:] == ["round 1 has 1 reports, and 0 devices reported"]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_fault_is_told_with_an_exit_code_of_its_own(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    account = Account(Counter({"committing": 7}), 4, 9, 36, 1.5, (2.0, 1.0), ["the first", "the second"])
    monkeypatch.setattr(server_kills, "kill_servers", lambda *_: account)
    assert main(["bench", "server-kills", "--kills", "7", *options]) == 1
    output = capsys.readouterr()
    assert output.err.splitlines()[-1] == "pocketfed: after 7 kills: the first (2 faults)"
    if options:
        assert json.loads(output.out) == account.to_json() | {"losses": [2.0, 1.0]}
    else:
        assert _cells(output.out)[-1] == ["faults", "2"]


def test_a_file_that_can_t_be_written_is_told_before_anything_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "server-kills", "--out", str(tmp_path)]) == 2
    assert (
        capsys.readouterr().err == f"pocketfed: {tmp_path}: can't write it: it is a folder, or in none; change --out\n"
    )
