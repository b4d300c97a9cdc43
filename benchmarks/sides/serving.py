"""The aggregation server with one device a round: python -m benchmarks.sides.serving BUNDLE FOLDER WORK.

WORK is a `ClientWork` as JSON. The URL is printed once the server listens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from aggregation_server.rounds import RoundConfig
from aggregation_server.server import serve
from aggregation_server.task import Task
from device_runtime.bundle import open_bundle
from device_runtime.work import ClientWork

if __name__ == "__main__":
    round_config = RoundConfig(1, over_selection=1.0, selection_timeout=600, reporting_timeout=600)
    task = Task(
        round_config, ClientWork.from_json(json.loads(sys.argv[3])), seed=9, retry_seconds=0.02, poll_seconds=0.02
    )
    store = f"sqlite:///{Path(sys.argv[2]) / 'server.db'}"
    serve(open_bundle(Path(sys.argv[1])), task, store, "127.0.0.1", 0, lambda url: print(url, flush=True))
