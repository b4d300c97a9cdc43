"""Backups as docs/operations.md has them, made while a server is at work, and a server that goes on from one."""

from __future__ import annotations

import re
import shlex
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from aggregation_server.rounds import RoundConfig
from aggregation_server.server import Listening, serve
from aggregation_server.task import Task
from device_runtime.bundle import Bundle
from device_runtime.errors import InputError
from tests.aggregation_server.durability.clients import update_of
from tests.aggregation_server.durability.postgresql import Cluster
from tests.aggregation_server.running import KEYS, Running

PAGE = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")
ROUND = RoundConfig(2, over_selection=1)
DEVICES = ("a", "b")
BACKUP = "/backup/server"
SQLITE = "sqlite:///"


def _command(beginning: str) -> list[str]:
    """The command of the page that begins so."""
    (line,) = re.findall(rf"^    ({re.escape(beginning)}.*)$", PAGE, re.MULTILINE)
    return shlex.split(line)


def _run(command: list[str], places: dict[str, str]) -> None:
    """Run a command of the page at other places."""
    for named, real in places.items():
        assert any(named in word for word in command), named
        command = [word.replace(named, real) for word in command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)
    assert (done.returncode, done.stderr) == (0, "")


class Place:
    """Where a database is, and how it is backed up and restored.

    Args:
        way: of the page.
        folder: for files.
        request: of the test, for PostgreSQL.
    """

    def __init__(self, way: str, folder: Path, request: pytest.FixtureRequest) -> None:
        self._way, self._folder = way, folder
        self._cluster: Cluster | None = None
        if way == "pg_dump":
            self._cluster = request.getfixturevalue("postgresql")
            self.url = self._cluster.new_database()
        else:
            self.url = f"{SQLITE}{folder / 'server.db'}"

    def back_up(self) -> None:
        copy = str(self._folder / "copy")
        if self._way == "pg_dump":
            _run(_command("pg_dump"), {"postgresql://pocketfed@db.example/fleet": self.url, f"{BACKUP}.dump": copy})
        elif self._way == ".backup":
            _run(_command('sqlite3 server.db ".backup'), {f"{BACKUP}.db": copy, "server.db": self.url[len(SQLITE) :]})
        else:
            (statement,) = re.findall(r'"(VACUUM INTO \'.*?\')"', PAGE)
            with sqlite3.connect(self._folder / "server.db", isolation_level=None) as connection:
                connection.execute(statement.replace(f"{BACKUP}.db", copy))
            connection.close()

    def restored(self) -> str:
        """The URL of a database that the backup was put into."""
        copy = self._folder / "copy"
        if self._cluster is not None:
            url = self._cluster.new_database()
            _run(_command("pg_restore"), {"postgresql://pocketfed@db.example/fleet": url, f"{BACKUP}.dump": str(copy)})
            return url
        with sqlite3.connect(copy) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()
        return f"{SQLITE}{copy}"


@pytest.fixture(params=[".backup", "VACUUM INTO", "pg_dump"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    program = {".backup": "sqlite3", "pg_dump": "pg_dump"}.get(request.param)
    if program is not None and shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    return Place(request.param, tmp_path, request)


def test_a_server_goes_on_from_a_backup_that_was_made_while_another_was_at_work(
    place: Place, start_server: Callable[..., Running], bundle: Bundle, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    server = start_server(ROUND, place.url, spool, retry_seconds=0.05)

    def report(server: Running, name: str, token: str, number: int) -> str:
        _, reply = server.report(name, update_of(bundle, name, number), token)
        return reply.reason or reply.verdict

    def run_round(server: Running, number: int) -> str:
        tokens = {name: _accepted(server, name) for name in DEVICES}
        assert [report(server, name, tokens[name], number) for name in DEVICES] == ["accepted"] * 2
        return str(server.status_when("committed_rounds", number)["weights"])

    made = [run_round(server, number) for number in (1, 2)]
    tokens = {name: _accepted(server, name) for name in DEVICES}
    assert report(server, "a", tokens["a"], 3) == "accepted"

    over = threading.Event()

    def keep_writing() -> None:
        while not over.is_set():
            server.checked_in("c")  # is noted as seen, and told to come again

    server.device("c")
    writer = threading.Thread(target=keep_writing)
    writer.start()
    place.back_up()
    shutil.copytree(spool, tmp_path / "spool copy")
    over.set()
    writer.join()
    assert server.operator.post("/v1/revoke", json={"client": "c"}).status_code == 200  # the backup knows nothing of it
    assert report(server, "b", tokens["b"], 3) == "accepted"
    made.append(str(server.status_when("committed_rounds", 3)["weights"]))
    made.append(run_round(server, 4))
    server.kill()

    url = place.restored()
    with pytest.raises(InputError, match="not the folder with this fleet's reports"):
        serve(bundle, Task(ROUND), url, tmp_path / "empty", KEYS, Listening(), print)
    again = start_server(ROUND, url, tmp_path / "spool copy", anybody=False, retry_seconds=0.05)
    status = again.status()
    assert (status["committed_rounds"], status["weights"]) == (2, made[1])
    assert [record["weights"] for record in status["history"]] == made[:2]
    for identity in made[:2]:
        assert again.viewer.get(f"/v1/weights/{identity}").status_code == 200
    for name in (*DEVICES, "c"):
        again.know(name)
    assert report(again, "a", tokens["a"], 3) == "duplicate"  # it counts already
    assert report(again, "b", tokens["b"], 3) == "accepted"
    assert again.status_when("committed_rounds", 3)["weights"] == made[2]
    assert run_round(again, 4) == made[3]
    assert again.checked_in("c").status_code == 200  # so whoever restores revokes anew


def _accepted(server: Running, name: str) -> str:
    while True:
        reply = server.checked_in(name).json()
        if reply["decision"] == "accept":
            return str(reply["token"])
