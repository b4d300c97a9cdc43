"""The aggregation server with one device a round: python -m benchmarks.sides.serving BUNDLE FOLDER WORK.

WORK is a `ClientWork` as JSON. The URL is printed once the server listens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from aggregation_server.access.quotas import Quotas
from aggregation_server.access.tokens import read_key
from aggregation_server.rounds import RoundConfig
from aggregation_server.server import Listening, serve
from aggregation_server.task import Task
from aggregation_server.web.callers import Keys
from device_runtime.bundle import open_bundle
from device_runtime.work import ClientWork


def serve_here(bundle: Path, folder: Path, task: Task) -> None:
    """Serve a task on 127.0.0.1 to devices that need no code, and print the URL; all is kept in the folder."""
    keys = Keys(read_key(folder / "operator.key", "operator"), read_key(folder / "viewer.key", "viewer"))
    store = f"sqlite:///{folder / 'server.db'}"
    any_rate = Quotas(address_rate=0, device_rate=0, failure_rate=0)  # devices have one address here, and don't rest
    serve(open_bundle(bundle), task, store, folder / "spool", keys, Listening(), _announce, True, any_rate)


def _announce(url: str) -> None:
    print(url, flush=True)


if __name__ == "__main__":
    round_config = RoundConfig(1, over_selection=1.0, selection_timeout=600, reporting_timeout=600)
    work = ClientWork.from_json(json.loads(sys.argv[3]))
    serve_here(
        Path(sys.argv[1]), Path(sys.argv[2]), Task(round_config, work, seed=9, retry_seconds=0.02, poll_seconds=0.02)
    )
