"""Two server processes on one PostgreSQL database and one spool, with clients that call now one, now the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import pytest

from aggregation_server.rounds import RoundConfig
from aggregation_server.server import Listening
from aggregation_server.storage import database
from aggregation_server.storage.database import StoreError
from aggregation_server.storage.store import Store
from device_runtime import messages
from device_runtime.bundle import Bundle
from tests.aggregation_server.durability.clients import Client, update_of, wait_for
from tests.aggregation_server.durability.postgresql import Cluster
from tests.aggregation_server.durability.test_server_kills import check_rounds
from tests.aggregation_server.running import Running

NAMES = ["a", "b", "c", "d"]
ROUND = RoundConfig(len(NAMES), over_selection=1)
QUICK: dict[str, Any] = {"poll_seconds": 0.02, "retry_seconds": 0.02, "tick_seconds": 0.05}


@pytest.fixture
def pair(
    postgresql: Cluster, start_server: Callable[..., Running], spool_folder: Path
) -> Iterator[Callable[..., tuple[Running, Running]]]:
    """Start two servers of one fleet, on a new database."""
    started: list[Running] = []

    def start(config: RoundConfig = ROUND, **task: Any) -> tuple[Running, Running]:
        url = postgresql.new_database()
        for _ in range(2):
            started.append(start_server(config, url, spool_folder, **QUICK | task))
        return started[-2], started[-1]

    yield start
    for server in started:
        server.kill()


def in_round(server: Running, names: list[str], other: Running | None = None) -> dict[str, str]:
    """The tokens of devices in a round that has started, accepted by two servers in turn."""
    servers = [server, other or server]
    return {name: servers[index % 2].check_in(name) for index, name in enumerate(names)}


def history_of(server: Running) -> list[dict[str, Any]]:
    records = server.viewer.get("/v1/rounds", params={"limit": 1000}).json()
    assert isinstance(records, list)
    return records


def test_one_of_two_servers_is_killed_in_mid_round_and_everything_acknowledged_counts_once(
    bundle: Bundle,
    postgresql: Cluster,
    start_server: Callable[..., Running],
    spool_folder: Path,
    undisturbed: Callable[..., list[str]],
) -> None:
    rounds, url = 9, postgresql.new_database()
    task = QUICK | {"rounds": rounds, "downlink": "q8"}
    servers = [start_server(ROUND, url, spool_folder, **task) for _ in range(2)]
    port = urlsplit(servers[1].url).port or 0
    kills = {3: Event(), 6: Event()}  # rounds in which two of the devices wait for a server to be killed
    urls = [server.url for server in servers]
    clients = [Client(bundle, name, urls, held={} if name in NAMES[:2] else kills) for name in NAMES]
    for client in clients:
        client.start()
    for number, killed in kills.items():
        servers[0].status_when("round", number)
        assert servers[0].status_when("reports", 2)["phase"] == "reporting"
        servers[1].kill()
        killed.set()
        wait_for(lambda: servers[0].status()["committed_rounds"] >= number)  # noqa: B023 - the other one goes on
        servers[1] = start_server(ROUND, url, spool_folder, listening=Listening(port=port), **task)
    for client in clients:
        client.join(60)
    check_rounds(history_of(servers[0]), clients, undisturbed(NAMES, rounds, downlink="q8"))
    assert history_of(servers[1]) == history_of(servers[0])
    one, other = (server.viewer.get(messages.LATEST_WEIGHTS).content for server in servers)
    assert one == other
    wait_for(lambda: list(spool_folder.glob("round-*")) == [])
    assert clients[0].answers["gone"]
    for server in servers:
        server.kill()


def test_what_one_server_was_told_the_other_one_knows_at_once(
    bundle: Bundle, pair: Callable[..., tuple[Running, Running]]
) -> None:
    one, other = pair()
    tokens = in_round(one, NAMES, other)
    reports = {name: update_of(bundle, name, 1) for name in NAMES}
    assert one.report("a", reports["a"], tokens["a"])[1].verdict == "accepted"
    status, reply = other.report("a", reports["a"], tokens["a"])
    assert (status, reply.verdict, reply.reason) == (400, "refused", "duplicate")
    assert other.status()["reports"] == one.status()["reports"] == 1
    assert other.checked_in("a").json()["reason"] == "already_reported"
    # A revocation.
    weights = messages.weights_path(other.status()["weights"])
    assert other.device("b").get(weights).status_code == 200
    assert one.operator.post("/v1/revoke", json={"client": "b"}).status_code == 200
    assert other.device("b").get(weights).status_code == 401
    token = {messages.TOKEN: tokens["b"]}
    assert other.device("b").post(messages.REPORT, content=reports["b"], headers=token).status_code == 401
    assert other.report("c", reports["c"], tokens["c"])[0] == 200
    states = {device["name"]: device["state"] for device in other.viewer.get("/v1/devices").json()}
    assert states == {"a": "active", "b": "revoked", "c": "active", "d": "active"}


def test_both_servers_are_killed_while_a_round_is_committing(
    bundle: Bundle,
    postgresql: Cluster,
    start_server: Callable[..., Running],
    spool_folder: Path,
    undisturbed: Callable[..., list[str]],
) -> None:
    url = postgresql.new_database()
    servers = [start_server(ROUND, url, spool_folder, **QUICK) for _ in range(2)]
    tokens = in_round(servers[0], NAMES, servers[1])
    # Whoever has this lock commits; that is nobody, so that both are killed in that phase for certain.
    with postgresql.session(url) as session:
        session.execute("SELECT pg_advisory_lock(%s)", [database._COMMIT_LOCK])
        for index, name in enumerate(NAMES):
            assert servers[index % 2].report(name, update_of(bundle, name, 1), tokens[name])[0] == 200
        assert servers[0].status_when("phase", "committing")["committed_rounds"] == 0
        for server in servers:
            server.kill()
    server = start_server(ROUND, url, spool_folder, **QUICK)
    server.status_when("committed_rounds", 1)
    (record,) = history_of(server)
    assert (record["clients"], record["weights"]) == (len(NAMES), undisturbed(NAMES, 1)[0])
    wait_for(lambda: not list(spool_folder.glob("round-*")))
    server.kill()


def test_postgresql_that_is_restarted_in_mid_round_is_told_with_503_and_the_round_goes_on(
    bundle: Bundle,
    postgresql: Cluster,
    pair: Callable[..., tuple[Running, Running]],
    undisturbed: Callable[..., list[str]],
) -> None:
    one, other = pair()
    tokens = in_round(one, NAMES, other)
    assert one.report("a", update_of(bundle, "a", 1), tokens["a"])[0] == 200
    postgresql.stop()
    try:
        body, token = update_of(bundle, "b", 1), {messages.TOKEN: tokens["b"]}
        answer = other.device("b").post(messages.REPORT, content=body, headers=token)
        assert (answer.status_code, answer.json()["reason"]) == (503, "store")
        assert int(answer.headers["Retry-After"]) >= 1
        assert "postgresql" in answer.json()["message"] and "\n" not in answer.json()["message"]
        assert one.viewer.get(messages.STATUS).status_code == 503
        assert one.viewer.get(messages.LATEST_WEIGHTS).status_code == 200  # they are in memory
    finally:
        postgresql.start()
    assert one.report("a", update_of(bundle, "a", 1), tokens["a"])[1].reason == "duplicate"
    for name in NAMES[1:]:
        assert other.report(name, update_of(bundle, name, 1), tokens[name])[1].verdict == "accepted"
    assert one.status_when("committed_rounds", 1)["weights"] == undisturbed(NAMES, 1)[0]


def test_a_server_that_hangs_in_the_middle_of_a_turn_loses_its_lock(
    postgresql: Cluster, open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_HUNG_SECONDS", 1)
    url = postgresql.new_database()
    hanging, other = open_store(url), open_store(url)
    with pytest.raises(StoreError, match="the server's database failed"), hanging.ledger(ROUND) as ledger:
        with other.ledger(ROUND) as after:  # it waits until the first one has lost the fleet
            after.set_fleet(paused=True)
        ledger.set_fleet(paused=False)
    assert other.fleet().paused


def test_a_lock_that_is_not_let_go_of_is_not_waited_for_for_long(
    postgresql: Cluster, open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_LOCK_SECONDS", 0.2)
    url = postgresql.new_database()
    store = open_store(url)
    with postgresql.session(url) as session, session.transaction():
        session.execute("SELECT * FROM fleet FOR UPDATE")
        with pytest.raises(StoreError, match="lock timeout"), store.ledger(ROUND):
            pass
        assert store.fleet().number == 0  # whoever only reads waits for nobody


def test_a_commit_belongs_to_one_server_until_its_session_ends(
    postgresql: Cluster, open_store: Callable[..., Store]
) -> None:
    url = postgresql.new_database()
    one, other = open_store(url).database, open_store(url).database
    with one.sole_committer() as first, other.sole_committer() as second:
        assert (first, second) == (True, False)
    with other.sole_committer() as alone, postgresql.session(url) as session:
        assert alone
        ended = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
        assert session.execute(ended).fetchall() == [(True,)]
        wait_for(lambda: session.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'").fetchall() == [])
        with one.sole_committer() as free:
            assert free
