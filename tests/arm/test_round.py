"""A whole round: a real server on this machine, and an emulated ARM device that takes part over HTTP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.kills import viewer
from cli.fleet import server_process
from device_runtime.bundle import Bundle
from device_runtime.examples import load_examples
from device_runtime.messages import LATEST_WEIGHTS, STATUS
from device_runtime.trainer import Trainer
from device_runtime.transport import Transport
from device_runtime.weights import load_weights
from device_runtime.work import ClientWork, client_seed
from tests.arm.device import ROUND_TOLERANCE, Device, Run, difference

pytestmark = pytest.mark.arm

TASK_SEED = 3


@pytest.mark.parametrize("codec", ["f32", "q8"])
def test_a_device_takes_part_in_a_round(
    codec: str, device: Device, run: Run, digits_bundle: Bundle, examples_file: Path, tmp_path: Path
) -> None:
    task = ["--goal", "1", "--over-selection", "1", "--rounds", "1", "--retry-seconds", "0.1", "--codec", codec]
    store = ["--db", f"sqlite:///{tmp_path / 'server.db'}", "--spool", tmp_path / "spool", "--keys", tmp_path]
    served = [str(each) for each in (digits_bundle.path, *task, *store, "--seed", TASK_SEED)]
    client = ["--client", "board-0", "--data", examples_file, "--cache", tmp_path / "cache"]
    with server_process(served, tmp_path / "server.log") as url:
        told = run(device.command("run", "--server", url, "--population", "digits_mlp", *client))
        get = Transport(url, caller=viewer(tmp_path))
        status = json.loads(get.request("GET", STATUS, limit=1 << 20).body)
        committed = get.request("GET", LATEST_WEIGHTS, limit=1 << 20).body
    assert told.splitlines()[0] == "enrolled as 'board-0'"
    assert told.splitlines()[1].startswith("round 1: reported (loss ")
    assert told.splitlines()[-1] == "the task is complete"
    (entry,) = status["history"]
    assert (entry["outcome"], entry["clients"], entry["examples"]) == ("committed", 1, 23)
    if codec == "f32":  # then the new weights are the old ones plus this machine's delta
        manifest, before = digits_bundle.manifest, digits_bundle.initial_weights()
        work = ClientWork(seed=client_seed(TASK_SEED, 1, "board-0"))
        here = Trainer(digits_bundle).train(before, load_examples(examples_file, manifest), work, 1).collect()
        after = load_weights(committed, manifest.tensors, "committed weights")
        assert difference(tuple(a - b for a, b in zip(after, before, strict=True)), here.delta) <= ROUND_TOLERANCE
