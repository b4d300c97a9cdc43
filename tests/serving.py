"""A server in a process of its own, started by any command, and a device that takes part in a round of it."""

from __future__ import annotations

import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from device_runtime import codec, messages
from device_runtime.bundle import Bundle
from device_runtime.update import ClientUpdate
from tff_sim.child_process import dies_with_parent

SECRET = "s" * 43
RUNTIME = "none [/b] [red]0"  # a device says what it likes
QUICK = ("--goal", "1", "--over-selection", "1", "--retry-seconds", "0.01", "--codec", "f32")
_START_SECONDS = 120.0
_PAUSE = 0.05


@contextmanager
def serving(command: Sequence[object], log: Path, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """A command that runs `pocketfed serve`; yields its URL, and ends it after, by SIGTERM and with exit code 0."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            dies_with_parent([str(part) for part in command]),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
        )  # fmt: skip
    assert process.stdout is not None
    try:
        with process.stdout as stdout:
            lines: list[str] = []
            reader = threading.Thread(target=lambda: lines.append(stdout.readline()), daemon=True)
            reader.start()
            reader.join(_START_SECONDS)
            assert lines and lines[0].startswith("listening on "), log.read_text()
            yield lines[0].removeprefix("listening on ").strip()
        process.terminate()
        assert process.wait(30) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def take_part(
    url: str, bundle: Bundle, keys: Path, name: str = "phone-0", value: float = 0.25, authority: Path | None = None
) -> str:
    """A device takes part in a round that is of it alone, with a delta of one value; the hash of the new weights.

    Args:
        url: of a server that enrols anybody.
        bundle: the server's.
        keys: its folder.
        name: the device's.
        value: of the delta, and the loss.
        authority: a PEM file, where the server speaks TLS.
    """
    manifest = bundle.manifest
    operator = ("operator", (keys / "operator.key").read_text().strip())
    verify = True if authority is None else ssl.create_default_context(cafile=authority)
    with httpx.Client(base_url=url, auth=(name, SECRET), trust_env=False, timeout=30, verify=verify) as device:
        body: dict[str, Any] = {"code": "", "client": name, "secret": SECRET}
        assert device.post(messages.ENROL, json=body).status_code == 200
        body = {"population": manifest.name, "client": name, "runtime": RUNTIME, "tasks": ["training"]}
        while (reply := device.post(messages.CHECK_IN, json=body).json())["decision"] != "accept":
            assert reply["decision"] == "reject", reply
            time.sleep(_PAUSE)
        token = {messages.TOKEN: reply["token"]}
        while (work := device.get(messages.CONFIGURATION, headers=token).json())["state"] == "wait":
            time.sleep(_PAUSE)
        delta = tuple(np.full([d or 0 for d in spec.shape], value, np.float32) for spec in manifest.tensors)
        update = ClientUpdate(delta, 10, work["round_number"], {"loss": value})
        report = codec.encode(update, manifest.tensors, manifest.model_id, "f32", 0)
        assert device.post(messages.REPORT, content=report, headers=token).status_code == 200
        while True:
            status = device.get(messages.STATUS, auth=operator).json()
            if status["committed_rounds"] >= work["round_number"]:
                return str(status["weights"])
            time.sleep(_PAUSE)
