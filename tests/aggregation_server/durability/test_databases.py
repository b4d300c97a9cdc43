"""How databases are opened: made, brought up to date, shared or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect, text

from aggregation_server.aggregation.server_optimizer import ServerOptimizer
from aggregation_server.history import Counts
from aggregation_server.rounds import RoundConfig, Standing
from aggregation_server.storage.database import StoreError
from aggregation_server.storage.migrations import upgrade
from aggregation_server.storage.schema import METADATA
from aggregation_server.storage.store import Store
from cli.main import main
from device_runtime.bundle import WEIGHTS, Bundle
from device_runtime.errors import InputError
from device_runtime.tensors import sha256
from tests.aggregation_server.durability.clients import update_of
from tests.aggregation_server.durability.postgresql import Cluster
from tests.aggregation_server.fleet import Fleet
from tests.aggregation_server.running import Running

KINDS = ["sqlite", "postgresql"]


@pytest.fixture
def new_url(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], str]:
    """The URL of an empty database of a kind."""

    def make(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path / 'server.db'}"
        cluster: Cluster = request.getfixturevalue("postgresql")
        return cluster.new_database()

    return make


def engine_of(url: str) -> Engine:
    return create_engine(url.replace("postgresql://", "postgresql+psycopg://"))


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line with which `pocketfed serve` ends, with the exit code for wrong input."""
    assert main(["serve", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    return line


@pytest.mark.parametrize("kind", KINDS)
def test_the_migrations_make_the_schema(new_url: Callable[[str], str], kind: str) -> None:
    engine = engine_of(new_url(kind))
    upgrade(engine)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        made = {index["name"]: index for index in inspect(connection).get_indexes("rounds")}
        where = str(made["one_commit_a_version"]["dialect_options"][f"{kind}_where"])
    assert made["one_commit_a_version"]["unique"]
    assert "committed" in where and "evaluation" in where
    upgrade(engine)  # nothing is left to be done
    engine.dispose()


@pytest.mark.parametrize("stamped", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_database_from_before_is_carried_over(
    new_url: Callable[[str], str],
    bundle: Bundle,
    make_fleet: Callable[..., Fleet],
    kind: str,
    stamped: bool,
) -> None:
    url, initial = new_url(kind), bundle.file(WEIGHTS).read_bytes()
    later = initial[:-1] + bytes([initial[-1] ^ 1])
    engine = engine_of(url)
    upgrade(engine, "0001")
    counts = Counts(7, 3, {"cohort_full": 4}, 2, 1, {"checksum": 1}, 900, 8000)
    with engine.begin() as connection:
        if not stamped:  # as it was before versions of the schema were written down
            connection.execute(text("DROP TABLE alembic_version"))
        for data in (initial, later):
            connection.execute(text("INSERT INTO weights VALUES (:a, :b)"), {"a": sha256(data), "b": data})
        nothing = {"seconds": 0.0, "reason": "", "loss": None, "examples": 0, "clients": 0, "counts": asdict(Counts())}
        abandoned = nothing | {"seconds": 60.0, "reason": "selection_timeout", "counts": asdict(counts)}
        committed = {"seconds": 9.5, "reason": "", "loss": 0.5, "examples": 30, "clients": 2, "counts": asdict(counts)}
        for number, outcome, data, details in (
            (0, "committed", initial, nothing),
            (1, "abandoned", initial, abandoned),
            (1, "committed", later, committed),
        ):
            row: dict[str, Any] = {"number": number, "outcome": outcome, "weights": sha256(data)}
            connection.execute(
                text(
                    "INSERT INTO rounds (number, outcome, weights, model_id, started, ended, details)"
                    " VALUES (:number, :outcome, :weights, :model, 1.0e9, 1.1e9, :details)"
                ),
                row | {"model": bundle.manifest.model_id, "details": json.dumps(details)},
            )
    engine.dispose()
    fleet = make_fleet(goal_count=2, over_selection=1, store_url=url)
    first, second = fleet.history()
    assert (first.number, first.outcome, first.reason, first.seconds) == (1, "abandoned", "selection_timeout", 60.0)
    assert (second.number, second.outcome, second.weights) == (1, "committed", sha256(later))
    assert (second.loss, second.examples, second.clients, second.counts) == (0.5, 30, 2, counts)
    assert (second.started, second.ended) == (1.0e9, 1.1e9)
    assert fleet.store.weights(sha256(later)) == later
    state = fleet.store.fleet()
    assert (state.number, state.weights, state.initial_weights) == (1, sha256(later), sha256(initial))
    assert state.counts == counts + counts
    fleet.run_round("a", "b")
    assert [record.number for record in fleet.history()] == [1, 1, 2]
    fleet.operations.rollback(1)
    assert fleet.store.fleet().weights == sha256(later)
    fleet.operations.rollback(0)
    assert fleet.store.fleet().weights == sha256(initial)
    # What was made out of an old one is the schema, too.
    engine = engine_of(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


@pytest.mark.parametrize("kind", KINDS)
def test_a_database_with_rows_of_weights_that_are_gone_is_carried_over(
    new_url: Callable[[str], str], bundle: Bundle, make_fleet: Callable[..., Fleet], kind: str
) -> None:
    """The step from 0002, in the middle of a round."""
    url, initial = new_url(kind), bundle.file(WEIGHTS).read_bytes()
    second = initial[:-1] + bytes([initial[-1] ^ 1])
    optimizer, tensors = ServerOptimizer("momentum"), bundle.manifest.tensors
    gone, moments = sha256(b"gone"), optimizer.dump(optimizer.initial(tensors), tensors)
    engine = engine_of(url)
    upgrade(engine, "0002")
    nothing = json.dumps(asdict(Counts()))
    with engine.begin() as connection:
        for identity, data in ((sha256(initial), initial), (gone, None), (sha256(second), second)):
            connection.execute(text("INSERT INTO weights VALUES (:a, :b)"), {"a": identity, "b": data})
        connection.execute(
            text(
                "INSERT INTO fleet (id, model_id, clock, paused, token_key, number, weights, initial_weights, counts)"
                " VALUES (1, :model, 9.0, false, :key, 3, :weights, :initial, :counts)"
            ),
            {
                "model": bundle.manifest.model_id,
                "key": bytes(32),
                "weights": sha256(initial),
                "initial": sha256(initial),
                "counts": nothing,
            },
        )
        for number, phase, weights, state in (
            (1, "committed", gone, None),
            (2, "committed", sha256(second), moments),
            (3, "committed", sha256(initial), None),  # gone back
            (4, "reporting", None, None),
        ):
            connection.execute(
                text(
                    "INSERT INTO rounds (number, task, phase, reason, since, opened, offered, cohort, reported, counts,"
                    " weights, started, ended, optimizer) VALUES (:number, 'training', :phase, '', 8.0, 7.0, 2, 2, 0,"
                    " :counts, :weights, 1.0e9, 1.1e9, :optimizer)"
                ),
                {"number": number, "phase": phase, "weights": weights, "optimizer": state, "counts": nothing},
            )
        connection.execute(
            text("INSERT INTO devices (name, secret, enrolled, runtime, reports) VALUES ('a', :secret, 0.0, '', 0)"),
            {"secret": bytes(32)},
        )
        connection.execute(
            text("INSERT INTO participants (round_id, device, seat, reported) VALUES (4, 'a', 1, false)")
        )
    upgrade(engine)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        if kind == "sqlite":
            assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
        assert connection.execute(text("SELECT sha256 FROM weights WHERE data IS NULL")).all() == []
    engine.dispose()
    fleet = make_fleet(goal_count=2, over_selection=1, minimum_reports=2, store_url=url, optimizer=optimizer)
    names = [gone, sha256(second), sha256(initial)]
    assert [(record.number, record.weights) for record in fleet.history()] == list(enumerate(names, 1))
    assert [fleet.store.weights(name) for name in names] == [None, second, initial]
    assert [fleet.store.optimizer(number) for number in (1, 2, 3)] == [None, moments, None]
    with fleet.store.ledger(RoundConfig(2)) as ledger:
        opened = ledger.open_round()
        assert opened is not None and (opened[0].id, opened[0].number, opened[0].cohort) == (4, 4, 2)
        assert ledger.standings([4], ["a"]) == {(4, "a"): Standing(1, False)}
    with pytest.raises(InputError, match=r"^version 1: not there to go back to; "):
        fleet.operations.rollback(1)
    assert fleet.operations.rollback(2).weights == sha256(second)
    assert fleet.store.optimizer(4) == moments
    # Keys between tables hold again once the step is done.
    with pytest.raises(StoreError, match=r"(?i)foreign key"), fleet.store.database.transaction() as connection:
        connection.execute(text("INSERT INTO participants (round_id, device, reported) VALUES (99, 'a', false)"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_database_of_a_newer_server_is_refused(
    new_url: Callable[[str], str],
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    url = new_url(kind)
    engine = engine_of(url)
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    line = refusal([str(bundle.path), "--db", url, "--port", "0"], capsys)
    name = str(tmp_path / "server.db") if kind == "sqlite" else url.replace("host=/tmp/", "host=%2Ftmp%2F")
    assert line == (
        f"pocketfed: {name}: can't open the server's database: made by a newer pocketfed than this one: update it"
        " (Can't locate revision identified by '9999')"
    )


def test_servers_that_start_at_once_on_an_empty_database_make_one_fleet(
    postgresql: Cluster, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    initial = bundle.file(WEIGHTS).read_bytes()
    url, together = postgresql.new_database(), Barrier(4)

    def upgraded(engine: Engine) -> None:
        together.wait(30)  # with the schema, and
        upgrade(engine)
        together.wait(30)  # with what is in it

    monkeypatch.setattr("aggregation_server.storage.database.upgrade", upgraded)
    with ThreadPoolExecutor(4) as threads:
        stores = list(threads.map(lambda _: Store(url, bundle.manifest.model_id, initial), range(4)))
    assert len({store.fleet().token_key for store in stores}) == 1
    for store in stores:
        store.close()


def test_servers_of_one_fleet_are_told_to_share_their_spool(
    postgresql: Cluster, make_fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    url, other = postgresql.new_database(), tmp_path / "other"
    make_fleet(store_url=url)
    with pytest.raises(InputError, match=f"^{other}: not the folder with this fleet's reports; give all its servers"):
        make_fleet(store_url=url, spool=other)


def test_a_second_server_on_a_file_is_refused(
    bundle: Bundle,
    start_server: Callable[..., Running],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    file, link = tmp_path / "server.db", tmp_path / "link.db"
    server = start_server(RoundConfig(2), f"sqlite:///{file}")
    link.symlink_to(file)
    for path in (file, link):
        assert refusal([str(bundle.path), "--db", f"sqlite:///{path}", "--port", "0"], capsys) == (
            f"pocketfed: {path}: another server has this database; stop it, or share one with --db postgresql://…"
        )
    server.kill()
    Store(f"sqlite:///{link}", bundle.manifest.model_id, bundle.file(WEIGHTS).read_bytes()).close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(InputError) as caught:
        Store(url, "model", b"")
    assert str(caught.value) == "sqlite: can't open the server's database: expected sqlite:///FILE or postgresql://…"


def test_postgresql_that_can_not_be_reached_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Store(f"postgresql://fleet:secret@/fleet?host={tmp_path}", "model", b"")
    message = str(caught.value)
    assert "can't open the server's database: " in message and "No such file or directory" in message
    assert "\n" not in message and "secret" not in message


def test_weights_to_start_from_stay_once_devices_train_on_them(
    make_fleet: Callable[..., Fleet], bundle: Bundle, store_url: str
) -> None:
    initial = bundle.file(WEIGHTS).read_bytes()
    other = initial[:-1] + bytes([initial[-1] ^ 1])
    fleet = make_fleet(goal_count=2, over_selection=1)
    fleet.close()
    store = Store(store_url, bundle.manifest.model_id, other)
    assert store.fleet().weights == sha256(other)
    store.close()
    fleet = make_fleet(goal_count=2, over_selection=1)
    fleet.join("a", "b")
    fleet.report("a", update_of(bundle, "a", 1))
    fleet.close()
    store = Store(store_url, bundle.manifest.model_id, other)
    assert store.fleet().weights == sha256(initial)  # of which the report is a change
    store.close()


def test_names_that_no_database_takes_are_nobody_s(
    postgresql: Cluster, start_server: Callable[..., Running], spool_folder: Path
) -> None:
    server = start_server(RoundConfig(2), postgresql.new_database(), spool_folder)
    assert server.checked_in("a", runtime="nul \0 and \u2028").status_code == 200
    devices: list[dict[str, Any]] = server.viewer.get("/v1/devices").json()
    assert devices[0]["runtime"] == "nul  and "
    assert server.operator.post("/v1/revoke", json={"client": "a\0"}).status_code == 409
    assert server.viewer.get("/v1/devices", params={"after": "\0"}).status_code == 400
    server.kill()
