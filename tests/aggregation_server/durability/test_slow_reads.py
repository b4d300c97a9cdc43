"""Weights that come slowly out of the database: whoever else calls is answered meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from aggregation_server.rounds import RoundConfig
from device_runtime import messages
from device_runtime.bundle import WEIGHTS, Bundle
from device_runtime.tensors import sha256
from tests.aggregation_server.durability.clients import update_of, wait_for
from tests.aggregation_server.durability.postgresql import Cluster
from tests.aggregation_server.running import Running

_TRIES = 5  # the server gives up a lock after 5 seconds; a machine may be busy for as long, but not always


@contextmanager
def locked(url: str, table: str) -> Iterator[Callable[[], bool]]:
    """A table that nobody can read meanwhile; yields whether somebody waits for it."""
    with psycopg.connect(url) as holder:
        holder.execute(f"LOCK TABLE {table}")

        def waits() -> bool:
            row = holder.execute(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = %s::regclass", [table]
            ).fetchone()
            return row is not None and row[0] > 0

        yield waits


@pytest.mark.parametrize(
    ("table", "headers", "status"),
    [
        ("weights", {}, 200),
        ("weights", {"Range": "bytes=8-"}, 206),
        ("encoded_weights", {}, 404),
    ],
)
def test_others_are_answered_while_weights_are_read_from_the_database(
    postgresql: Cluster,
    bundle: Bundle,
    start_server: Callable[..., Running],
    tmp_path: Path,
    table: str,
    headers: dict[str, str],
    status: int,
) -> None:
    url, initial = postgresql.new_database(), bundle.file(WEIGHTS).read_bytes()
    server = start_server(RoundConfig(1, over_selection=1), url, tmp_path / "spool")
    assert server.report("a", update_of(bundle, "a", 1), server.check_in("a"))[0] == 200
    server.status_when("committed_rounds", 1)
    path = (messages.weights_path if table == "weights" else messages.encoded_weights_path)(sha256(initial))
    device, answers = server.device("a"), list[httpx.Response]()
    for _ in range(_TRIES):
        answers.clear()
        thread = threading.Thread(target=lambda: answers.append(device.get(path, headers=headers)))
        with locked(url, table) as waits:
            thread.start()
            wait_for(lambda: waits() or bool(answers))
            others: list[Any] = [server.checked_in("b").status_code, server.nobody.get("/healthz").status_code]
            meanwhile = waits()
        thread.join()
        if meanwhile:
            break
    assert meanwhile
    assert others == [200, 200]
    (answer,) = answers
    assert answer.status_code == status
    if status != 404:
        assert answer.content == initial[8 if headers else 0 :]
