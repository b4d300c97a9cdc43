"""Full disks, as real ones: a small file system, filled to its last page."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from aggregation_server.rounds import RoundConfig
from aggregation_server.server import Listening
from device_runtime import messages
from device_runtime.bundle import MANIFEST, Bundle
from tests.aggregation_server.durability.clients import update_of, wait_for
from tests.aggregation_server.running import Running
from tests.disk import mounted

NAMES = ["a", "b", "c"]
ROUND = RoundConfig(len(NAMES), over_selection=1)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "4m") as folder:
        yield folder


def fill(disk: Path) -> Path:
    """A file that takes all the room that is left."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def refused(server: Running, name: str, body: bytes, token: str) -> str:
    """The message to a device whose report can't be kept now."""
    answer = server.device(name).post(messages.REPORT, content=body, headers={messages.TOKEN: token})
    assert answer.status_code == 503, answer.text
    assert answer.headers["Retry-After"] == "2"
    assert answer.json()["reason"] == "store"
    return str(answer.json()["message"])


def test_reports_wait_for_room_while_the_disk_with_everything_on_it_is_full(
    bundle: Bundle, start_server: Callable[..., Running], disk: Path, undisturbed: Callable[..., list[str]]
) -> None:
    url, spool = f"sqlite:///{disk / 'server.db'}", disk / "spool"
    server = start_server(ROUND, url, spool)
    tokens = {name: server.check_in(name) for name in NAMES}
    bodies = {name: update_of(bundle, name, 1) for name in NAMES}
    assert server.report("a", bodies["a"], tokens["a"])[1].verdict == "accepted"
    weights = server.status()["weights"]
    filler = fill(disk)
    for name in NAMES[1:] * 3:
        assert "full" in refused(server, name, bodies[name], tokens[name]) or "No space left" in refused(
            server, name, bodies[name], tokens[name]
        )
    answer = server.checked_in("b")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    # Whatever only reads goes on, for people and for devices.
    assert server.status()["reports"] == 1
    assert server.viewer.get("/v1/rounds").json() == []
    assert server.device("b").get(messages.weights_path(weights)).status_code == 200
    assert server.device("b").get(messages.bundle_path(bundle.identity, MANIFEST)).status_code == 200
    # A kill and a start with no room at all change nothing of it.
    server.kill()
    listening = Listening(port=urlsplit(server.url).port or 0)
    server = start_server(ROUND, url, spool, listening=listening)
    refused(server, "b", bodies["b"], tokens["b"])
    assert server.status()["reports"] == 1
    filler.unlink()
    assert server.report("a", bodies["a"], tokens["a"])[1].reason == "duplicate"
    for name in NAMES[1:]:
        assert server.report(name, bodies[name], tokens[name])[1].verdict == "accepted"
    assert server.status_when("committed_rounds", 1)["weights"] == undisturbed(NAMES, 1)[0]
    server.kill()
    with closing(sqlite3.connect(disk / "server.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []


def test_reports_alone_wait_while_only_the_disk_of_the_spool_is_full(
    bundle: Bundle,
    start_server: Callable[..., Running],
    disk: Path,
    undisturbed: Callable[..., list[str]],
) -> None:
    spool = disk / "spool"
    server = start_server(ROUND, spool=spool)
    filler = fill(disk)
    tokens = {name: server.check_in(name) for name in NAMES}
    assert server.configuration("a", tokens["a"]).state == "start"
    bodies = {name: update_of(bundle, name, 1) for name in NAMES}
    for name in NAMES:
        message = refused(server, name, bodies[name], tokens[name])
        assert message == f"{spool}: can't write reports: No space left on device"
    assert (server.status()["phase"], server.status()["reports"]) == ("reporting", 0)
    assert [path.stat().st_size for path in spool.glob("round-*/*")] == [0]
    filler.unlink()
    for name in NAMES:
        assert server.report(name, bodies[name], tokens[name])[1].verdict == "accepted"
    assert server.status_when("committed_rounds", 1)["weights"] == undisturbed(NAMES, 1)[0]
    wait_for(lambda: not list(spool.glob("round-*")))
    server.kill()
