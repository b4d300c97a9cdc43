"""A server that is killed at random instants, and started again on the same port, database and spool."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aggregation_server.rounds import RoundConfig
from aggregation_server.server import Listening
from device_runtime.bundle import Bundle
from tests.aggregation_server.durability.clients import Client
from tests.aggregation_server.running import Running

KILLS = 5
ROUNDS = 20
NAMES = ["a", "b", "c", "d"]


def check_rounds(history: list[dict[str, Any]], clients: Sequence[Client], weights: list[str]) -> None:
    """Every round was committed once, of every report that was acknowledged, once, and nothing else."""
    assert [fault for client in clients for fault in client.faults] == []
    assert [(record["number"], record["outcome"]) for record in history] == [
        (number, "committed") for number in range(1, len(weights) + 1)
    ]
    acknowledged: Counter[int] = sum((client.acknowledged for client in clients), Counter())
    assert {record["number"]: record["clients"] for record in history} == acknowledged
    assert {record["counts"]["reported"] for record in history} == {len(clients)}
    assert [record["weights"] for record in history] == weights


def test_a_server_that_is_killed_loses_no_report_and_counts_none_twice(
    bundle: Bundle,
    start_server: Callable[..., Running],
    store_url: str,
    spool_folder: Path,
    undisturbed: Callable[..., list[str]],
) -> None:
    rng = random.Random(6)
    task: dict[str, Any] = {"rounds": ROUNDS, "downlink": "q8", "poll_seconds": 0.02, "retry_seconds": 0.02}
    config = RoundConfig(len(NAMES), over_selection=1)
    server = start_server(config, store_url, spool_folder, **task)
    listening = Listening(port=urlsplit(server.url).port or 0)
    killed = threading.Event()  # before it, the last round has not its reports
    clients = [Client(bundle, name, [server.url], linger=0.03, held={ROUNDS: killed}) for name in NAMES]
    for client in clients:
        client.start()
    for _ in range(KILLS):
        time.sleep(rng.uniform(0.05, 0.6))
        server.kill()
        server = start_server(config, store_url, spool_folder, listening=listening, **task)
    killed.set()
    for client in clients:
        client.join(60)
    history = server.viewer.get("/v1/rounds", params={"limit": 1000}).json()
    check_rounds(history, clients, undisturbed(NAMES, ROUNDS, downlink="q8"))
    assert list(spool_folder.glob("round-*")) == []
    assert all(client.answers["gone"] for client in clients)
