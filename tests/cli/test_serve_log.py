"""`pocketfed serve --log-json`: what a real server says of a fleet's day, and what it never says."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest

from cli.logs import Sparing, log_to_stderr
from device_runtime import messages
from device_runtime.bundle import Bundle, Manifest
from device_runtime.codec import encode
from device_runtime.update import ClientUpdate

POCKETFED = str(Path(sys.executable).with_name("pocketfed"))
SECRET = "a-secret-that-no-log-may-hold".ljust(43, "-")


def test_each_line_is_an_object_and_holds_no_secret(digits_bundle: Bundle, tmp_path: Path) -> None:
    command = [POCKETFED, "serve", str(digits_bundle.path), "--port", "0", "--goal", "1", "--over-selection", "1"]
    command.append("--log-json")
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            assert process.stdout is not None
            url = process.stdout.readline().removeprefix("listening on ").strip()
            keys = {role: (tmp_path / f"{role}.key").read_text().strip() for role in ("operator", "viewer")}
            code, token = _a_day(url, keys["operator"], digits_bundle.manifest)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
    assert process.returncode == 0
    text = log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "logger", "message", "event"} <= line.keys() for line in lines)
    assert all(datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0) for line in lines)
    assert [(line["event"], line["message"]) for line in lines] == [
        ("operation", "operator: enrolment-codes, count 1, hours 24.0"),
        ("round_over", "round 1 committed: 1 reports, loss 0.5"),
        ("round_over", "round 2 (training) abandoned: rollback"),
        ("operation", "operator: rollback, version 0"),
        ("operation", "operator: revoke, client phone"),
    ]
    _, committed, abandoned, rollback, _ = lines
    assert committed.items() >= {"level": "INFO", "round": 1, "task": "training", "outcome": "committed"}.items()
    assert committed.items() >= {"cohort": 1, "reports": 1, "loss": 0.5, "examples": 7, "late": 0}.items()
    assert committed["refused"] == {"truncated": 1} and committed["seconds"] >= 0 and len(committed["weights"]) == 64
    assert abandoned.items() >= {"level": "WARNING", "round": 2, "outcome": "abandoned", "reason": "rollback"}.items()
    assert abandoned.items() >= {"cohort": 1, "reports": 0, "loss": None, "weights": committed["weights"]}.items()
    assert rollback.items() >= {"operation": "rollback", "version": 0}.items()
    for secret in (SECRET, code, token, *keys.values()):
        assert secret not in text and len(secret) >= 8


def _a_day(url: str, key: str, manifest: Manifest) -> tuple[str, str]:
    """A device's rubbish, its report, and a round that the operator cuts short; the code and the token."""
    with (
        httpx.Client(base_url=url, auth=("operator", key), timeout=60, trust_env=False) as operator,
        httpx.Client(base_url=url, auth=("phone", SECRET), timeout=60, trust_env=False) as phone,
    ):
        code: str = operator.post("/v1/enrolment-codes", json={}).json()["codes"][0]
        assert phone.post(messages.ENROL, json={"code": code, "client": "phone", "secret": SECRET}).is_success
        token = _joined(phone, manifest.name)
        delta = tuple(np.ones([d or 0 for d in spec.shape], np.float32) for spec in manifest.tensors)
        update = ClientUpdate(delta, 7, 1, {"loss": 0.5})
        for body, status in ((b"rubbish", 400), (encode(update, manifest.tensors, manifest.model_id, "f32", 0), 200)):
            answer = phone.post(messages.REPORT, content=body, headers={messages.TOKEN: token})
            assert answer.status_code == status, answer.text
        _joined(phone, manifest.name)
        for path, operation in (("rollback", {"version": 0}), ("revoke", {"client": "phone"})):
            assert operator.post(f"/v1/{path}", json=operation).status_code == 200
    return code, token


def _joined(phone: httpx.Client, population: str) -> str:
    """The token of a round that takes the device, once there is one."""
    message = messages.CheckIn(population, "phone", "test").to_json()
    end = time.monotonic() + 30
    while (reply := phone.post(messages.CHECK_IN, json=message).json())["decision"] != "accept":
        assert time.monotonic() < end, reply
        time.sleep(0.05)
    return str(reply["token"])


def test_a_mistake_in_the_server_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr(as_json=True)
    logger = logging.getLogger("uvicorn.error")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("Exception in ASGI application")
    logger.info("Started server process")  # not worth a line
    (line,) = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert (said["level"], said["logger"], said["message"]) == (
        "ERROR",
        "uvicorn.error",
        "Exception in ASGI application",
    )
    assert said["error"].startswith("Traceback") and said["error"].endswith("ValueError: two\nlines")


def test_rubbish_that_anybody_can_send_is_told_once_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr()
    uvicorn, ours = logging.getLogger("uvicorn.error"), logging.getLogger("aggregation_server.server")
    for _ in range(100):
        uvicorn.warning("Invalid HTTP request received.")
        uvicorn.warning("Unsupported upgrade request.")
        ours.info("ours")
    lines = Counter(line.partition(" ")[2] for line in capsys.readouterr().err.splitlines())
    assert lines.pop("ours") == 100
    assert lines.keys() == {"Invalid HTTP request received.", "Unsupported upgrade request."}
    assert lines.total() <= 4, "a second may have passed"


def test_the_same_is_told_again_after_a_second() -> None:
    now = [5.0]
    sparing = Sparing(lambda: now[0])
    record = logging.LogRecord("uvicorn.error", logging.WARNING, "", 0, "rubbish", None, None)
    assert sparing.filter(record)
    now[0] += 0.9
    assert not sparing.filter(record)
    now[0] += 0.1
    assert sparing.filter(record)


def test_people_read_lines(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr()
    logging.getLogger("aggregation_server.coordination.committer").info("round %d committed", 3, extra={"round": 3})
    line = capsys.readouterr().err
    assert line.endswith(" round 3 committed\n") and line[2] == ":" and len(line.split(" ")[0]) == 8
    assert os.linesep not in line[:-1]
