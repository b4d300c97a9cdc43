"""The server as a process of its own, over real HTTP on 127.0.0.1."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from aggregation_server.app import create_app
from aggregation_server.coordinator import Coordinator
from aggregation_server.ranges import asked_range
from aggregation_server.rounds import RoundConfig
from aggregation_server.server import serve
from aggregation_server.task import Task
from aggregation_server.validation import largest_update
from device_runtime import messages
from device_runtime.bundle import FILES, MANIFEST, MANIFEST_HASH, MANIFEST_SIGNATURE, WEIGHTS, Bundle, open_bundle
from device_runtime.errors import NetworkError
from device_runtime.tensors import sha256
from device_runtime.weights import load_weights

Start = Callable[..., tuple[str, BaseProcess]]
MakeReport = Callable[..., bytes]
ROUND = RoundConfig(goal_count=2, selection_timeout=60, reporting_timeout=60)

_SERVE = """
import sys
from pathlib import Path
from aggregation_server.rounds import RoundConfig
from aggregation_server.server import serve
from aggregation_server.task import Task
from device_runtime.bundle import open_bundle
def announce(url):
    heavy = {"tensorflow", "tflite_runtime", "ai_edge_litert", "models"} & set(sys.modules)
    print(url, *heavy, flush=True)
serve(open_bundle(Path(sys.argv[1])), Task(RoundConfig(goal_count=2)), sys.argv[2], "127.0.0.1", 0, announce)
"""


def connect(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, trust_env=False, timeout=20)


def check_in(client: httpx.Client, *names: str) -> list[str]:
    """Accepted devices; their tokens."""
    tokens = []
    for name in names:
        body = {"population": "tiny", "client": name, "runtime": "test"}
        reply = messages.CheckInReply(**client.post(messages.CHECK_IN, json=body).json())
        assert reply.decision == "accept"
        tokens.append(reply.token)
    return tokens


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def report(client: httpx.Client, token: str, body: bytes) -> tuple[int, messages.ReportReply]:
    response = client.post(messages.REPORT, content=body, headers=bearer(token))
    return response.status_code, messages.ReportReply(**response.json())


def configuration(client: httpx.Client, token: str) -> messages.Configuration:
    response = client.get(messages.CONFIGURATION, headers=bearer(token))
    assert response.status_code == 200
    return messages.Configuration(**response.json())


def status(client: httpx.Client) -> dict[str, Any]:
    content = client.get(messages.STATUS).json()
    assert isinstance(content, dict)
    return content


@pytest.fixture(scope="module")
def server(start_server: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server in the reporting phase of a round that this module's tests never finish."""
    path = tmp_path_factory.mktemp("server") / "server.db"
    config = RoundConfig(goal_count=50, selection_timeout=0.2, reporting_timeout=600)
    with connect(start_server(f"sqlite:///{path}", config)[0]) as client:
        yield client


@pytest.fixture(scope="module")
def token(server: httpx.Client) -> str:
    """The token of an accepted device whose round started by its selection's timeout: nobody asked before."""
    (token,) = check_in(server, "a")
    while configuration(server, token).state == "wait":
        pass
    return token


def test_a_whole_round(start_server: Start, store_url: str, bundle: Bundle, make_report: MakeReport) -> None:
    url, _ = start_server(store_url, ROUND, rounds=1)
    with connect(url) as client:
        first, second = check_in(client, "a", "b")
        assert configuration(client, first).state == "wait"
        (third,) = check_in(client, "c")
        rejected = client.post(messages.CHECK_IN, json={"population": "tiny", "client": "d", "runtime": "test"})
        assert (rejected.status_code, rejected.json()["reason"]) == (200, "cohort_full")
        start = configuration(client, first)
        assert (start.state, start.bundle) == ("start", bundle.identity)
        weights = client.get(messages.weights_path(start.weights))
        assert sha256(weights.content) == start.weights
        assert report(client, second, make_report(value=1.0)) == (200, messages.ReportReply("accepted"))
        assert report(client, first, make_report(value=2.0))[0] == 200
        late, reply = report(client, third, make_report(value=1000.0))
        assert (late, reply.verdict, reply.reason) == (409, "aborted", "late")
        assert configuration(client, third).state == "aborted"
        now = status(client)
        assert (now["complete"], now["committed_rounds"], now["counts"]["late"]) == (True, 1, 1)
        after = client.get(messages.weights_path(now["history"][0]["weights"]))
        for tensor, initial in zip(
            load_weights(after.content, bundle.manifest.tensors), bundle.initial_weights(), strict=True
        ):
            np.testing.assert_array_equal(tensor, initial + np.float32(1.5))
        done = client.post(messages.CHECK_IN, json={"population": "tiny", "client": "a", "runtime": "test"})
        assert (done.status_code, done.json()["decision"]) == (200, "complete")


def test_the_state_survives_a_kill_after_a_commit(start_server: Start, store_url: str, make_report: MakeReport) -> None:
    url, process = start_server(store_url, ROUND)
    with connect(url) as client:
        tokens = check_in(client, "a", "b", "c")
        for token in tokens[:2]:
            assert report(client, token, make_report())[0] == 200
        before = status(client)
        lost, _, _ = check_in(client, "a", "b", "c")
    process.kill()
    process.join()
    url, process = start_server(store_url, ROUND)
    with connect(url) as client:
        again = status(client)
        for key in ("weights", "initial_weights", "committed_rounds", "round", "history"):
            assert again[key] == before[key]
        assert (again["committed_rounds"], again["round"]) == (1, 2)
        assert configuration(client, lost).state == "aborted"
        code, reply = report(client, lost, make_report(round_number=2))
        assert (code, reply.verdict, reply.reason) == (400, "refused", "unknown_token")
        for token in check_in(client, "a", "b", "c")[:2]:
            assert report(client, token, make_report(round_number=2))[0] == 200
        assert status(client)["committed_rounds"] == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_with_exit_code_0(start_server: Start, store_url: str, number: int) -> None:
    url, process = start_server(store_url, ROUND)
    with connect(url) as client:
        assert status(client)["phase"] == "selection"
        assert process.pid is not None
        os.kill(process.pid, number)
        process.join(20)
        assert process.exitcode == 0


def test_a_port_in_use_is_one_line_and_leaves_no_database(bundle: Bundle, store_url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(NetworkError) as caught:
            serve(bundle, Task(ROUND), store_url, "127.0.0.1", port, print)
    assert str(caught.value).startswith(f"can't listen at 127.0.0.1:{port}: Address already in use;")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "server.db").exists()


def test_a_device_gets_the_whole_bundle_and_no_other_file(server: httpx.Client, bundle: Bundle, tmp_path: Path) -> None:
    for name in (*FILES, MANIFEST, MANIFEST_HASH):
        response = server.get(messages.bundle_path(bundle.identity, name))
        assert (response.status_code, response.headers["cache-control"]) == (
            200,
            "public, max-age=31536000, immutable",
        )
        (tmp_path / name).write_bytes(response.content)
    assert open_bundle(tmp_path).identity == bundle.identity
    for path in (
        messages.bundle_path(bundle.identity, "server.db"),
        messages.bundle_path(bundle.identity, MANIFEST_SIGNATURE),
        messages.bundle_path(bundle.identity, "..%2Fmanifest.json"),
        messages.bundle_path("0" * 64, MANIFEST),
        messages.weights_path("0" * 64),
        messages.encoded_weights_path("0" * 64),
        "/docs",
        "/openapi.json",
    ):
        response = server.get(path)
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/json"


def test_a_signature_is_served_where_there_is_one_and_never_cached(server: httpx.Client, bundle: Bundle) -> None:
    """The bundle may be signed, or signed anew, while its server runs; its identity stays the same."""
    path, url = bundle.file(MANIFEST_SIGNATURE), messages.bundle_path(bundle.identity, MANIFEST_SIGNATURE)
    try:
        for content in (b"one", b"another"):
            before = status(server)["counts"]["download_bytes"]
            path.write_bytes(content)
            response = server.get(url)
            assert (response.status_code, response.content) == (200, content)
            assert response.headers["cache-control"] == "no-store"
            assert status(server)["counts"]["download_bytes"] == before + len(content)
    finally:
        path.unlink()
    response = server.get(url)
    assert (response.status_code, response.headers["cache-control"]) == (404, "no-store")


def test_a_part_of_a_file_and_of_weights_is_given_and_counted(server: httpx.Client, bundle: Bundle) -> None:
    weights = bundle.file(WEIGHTS).read_bytes()
    identity = bundle.manifest.files[WEIGHTS].sha256
    assert status(server)["initial_weights"] == identity
    for url in (messages.weights_path(identity), messages.bundle_path(bundle.identity, WEIGHTS)):
        before = status(server)["counts"]["download_bytes"]
        whole = server.get(url)
        assert (whole.status_code, whole.content) == (200, weights)
        assert (whole.headers["etag"], whole.headers["accept-ranges"]) == (f'"{identity}"', "bytes")
        for asked, start, stop in (
            ("bytes=0-", 0, None),
            ("bytes=10-", 10, None),
            ("bytes=3-7", 3, 8),
            ("bytes=-5", -5, None),
        ):
            part = server.get(url, headers={"Range": asked, "If-Range": whole.headers["etag"]})
            assert (part.status_code, part.content) == (206, weights[start:stop])
            assert part.headers["etag"] == whole.headers["etag"]
            first = range(len(weights))[start]
            where = f"bytes {first}-{first + len(part.content) - 1}/{len(weights)}"
            assert part.headers["content-range"] == where
        read = 2 * len(weights) - 10 + 5 + 5
        assert status(server)["counts"]["download_bytes"] == before + len(weights) + read
        behind = server.get(url, headers={"Range": f"bytes={len(weights)}-"})
        assert (behind.status_code, behind.headers["content-range"]) == (416, f"bytes */{len(weights)}")
        other = server.get(url, headers={"Range": "bytes=10-", "If-Range": '"other"'})
        assert (other.status_code, other.content) == (200, weights)


def test_encoded_weights_come_by_their_content_whole_or_in_part(
    start_server: Callable[..., tuple[str, BaseProcess]], make_report: Callable[..., bytes], tmp_path: Path
) -> None:
    config = RoundConfig(1, over_selection=1)
    url, _ = start_server(f"sqlite:///{tmp_path / 'server.db'}", config, downlink="q1")
    with httpx.Client(base_url=url, timeout=30) as server:
        holds = ""
        for number in (1, 2):
            reply = server.post(
                messages.CHECK_IN, json={"population": "tiny", "client": f"c{number}", "runtime": ""}
            ).json()
            headers = {"Authorization": f"Bearer {reply['token']}"}
            asked = server.get(messages.CONFIGURATION, params={messages.HOLDS: holds}, headers=headers).json()
            if number == 1:
                holds = asked["weights"]
            report = make_report(value=0.5, round_number=number)
            assert server.post(messages.REPORT, content=report, headers=headers).json()["verdict"] == "accepted"
        (identity,), base = asked["encoded"], asked["base"]
        assert base == holds
        whole = server.get(messages.encoded_weights_path(identity))
        assert (whole.status_code, sha256(whole.content)) == (200, identity)
        assert whole.headers["etag"] == f'"{identity}"'
        part = server.get(messages.encoded_weights_path(identity), headers={"Range": "bytes=7-"})
        assert (part.status_code, part.content) == (206, whole.content[7:])
        other = server.get(messages.encoded_weights_path("0" * 64)).json()
        assert other == {"reason": "not_found", "message": "no such encoded weights"}
        gone = server.get(messages.weights_path("0" * 64)).json()
        assert gone == {"reason": "not_found", "message": "no such version of the weights"}


def test_the_manifest_s_etag_is_the_identity(server: httpx.Client, bundle: Bundle) -> None:
    response = server.get(messages.bundle_path(bundle.identity, MANIFEST), headers={"Range": "bytes=2-"})
    assert (response.status_code, response.headers["etag"]) == (206, f'"{bundle.identity}"')
    assert response.content == bundle.file(MANIFEST).read_bytes()[2:]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"range": "bytes=0-"}, range(100)),
        ({"range": "Bytes = 5-9"}, range(5, 10)),
        ({"range": "bytes=5-1000"}, range(5, 100)),
        ({"range": "bytes=-7"}, range(93, 100)),
        ({"range": "bytes=-700"}, range(100)),
        ({"range": "bytes=100-"}, range(100, 100)),
        ({"range": "bytes=200-300"}, range(100, 100)),
        *(
            ({"range": text}, None)
            for text in ("bytes=9-5", "bytes=-", "bytes=1-2,4-5", "lines=1-", "bytes=a-", "bytes=1")
        ),
        ({"range": "bytes=" + "9" * 30 + "-"}, None),
        ({"range": "bytes=5-", "if-range": '"e"'}, range(5, 100)),
        ({"range": "bytes=5-", "if-range": '"f"'}, None),
        ({"range": "bytes=5-", "if-range": 'W/"e"'}, None),
    ],
    ids=str,
)
def test_the_range_that_is_asked_for(headers: dict[str, str], expected: range | None) -> None:
    assert asked_range(headers, 100, '"e"') == expected


def test_weights_may_be_cached_for_ever_and_the_status_never(server: httpx.Client) -> None:
    response = server.get(messages.weights_path(status(server)["weights"]))
    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert server.get(messages.STATUS).headers["cache-control"] == "no-store"
    latest = server.get(messages.LATEST_WEIGHTS)
    assert (latest.content, latest.headers["cache-control"]) == (response.content, "no-store")


@pytest.mark.parametrize(
    ("body", "code", "reason", "message"),
    [
        (b"{", 400, "malformed", "check-in: body: Invalid JSON"),
        (b"\xff", 400, "malformed", "check-in: body: Invalid JSON"),
        (b'{"population": "tiny", "client": "a"}', 400, "malformed", "check-in: runtime: Field required"),
        (b'{"population": "tiny", "client": 1, "runtime": ""}', 400, "malformed", "check-in: client: Input should be"),
        (b" " * 5000, 413, "too_large", "a check-in has at most 4096 bytes"),
        (b'{"population": "tiny", "client": "../a", "runtime": ""}', 400, "client", None),
        (b'{"population": "other", "client": "a", "runtime": ""}', 404, "population", None),
    ],
)
def test_check_ins_that_are_malformed(
    server: httpx.Client, body: bytes, code: int, reason: str, message: str | None
) -> None:
    response = server.post(messages.CHECK_IN, content=body)
    assert (response.status_code, response.json()["reason"]) == (code, reason)
    if message is None:
        assert messages.CheckInReply(**response.json()).decision == "reject"
    else:
        assert response.json()["message"].startswith(message)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer"}, {"Authorization": "Basic abc"}])
def test_without_a_token(server: httpx.Client, headers: dict[str, str]) -> None:
    message = "expected the header 'Authorization: Bearer TOKEN', with the token of the check-in"
    response = server.get(messages.CONFIGURATION, headers=headers)
    assert (response.status_code, response.json()) == (401, {"reason": "missing_token", "message": message})
    response = server.post(messages.REPORT, content=b"update", headers=headers)
    assert response.status_code == 401
    assert messages.ReportReply(**response.json()) == messages.ReportReply("refused", "missing_token", message)


def test_updates_that_do_not_validate_are_refused_with_their_reason(
    server: httpx.Client, token: str, make_report: MakeReport
) -> None:
    good = make_report()
    bodies = {
        "truncated": b"",
        "checksum": good[:40] + bytes([good[40] ^ 1]) + good[41:],
        "format": _sealed(b"NOPE" + good[4:-4]),
        "model": _sealed(good[:8] + b"m" * 16 + good[24:-4]),
        "shape": _sealed(good[:-8]),
        "non_finite": _sealed(good[:-8] + struct.pack("<f", np.nan)),
        "weight": make_report(weight=0),
        "wrong_round": make_report(round_number=7),
    }
    for reason, body in bodies.items():
        code, reply = report(server, token, body)
        assert (code, reply.verdict, reply.reason) == (400, "refused", reason)
    assert bodies.keys() <= status(server)["counts"]["refused"].keys()
    assert status(server)["reports"] == 0


def test_a_report_counts_once(start_server: Start, store_url: str, make_report: MakeReport) -> None:
    with connect(start_server(store_url, ROUND)[0]) as client:
        token, _, _ = check_in(client, "a", "b", "c")
        assert report(client, token, make_report())[0] == 200
        code, reply = report(client, token, make_report())
        assert (code, reply.verdict, reply.reason) == (400, "refused", "duplicate")
        assert status(client)["reports"] == 1


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_larger_than_any_valid_update(server: httpx.Client, bundle: Bundle, token: str, declared: bool) -> None:
    limit = largest_update(bundle.manifest.tensors)

    def chunks() -> Iterator[bytes]:
        yield b"x" * limit
        yield b"x"

    content = b"x" * (limit + 1) if declared else chunks()
    response = server.post(messages.REPORT, content=content, headers=bearer(token))
    assert response.status_code == 413
    reply = messages.ReportReply(**response.json())
    message = f"an update for this model has at most {limit} bytes"
    assert reply == messages.ReportReply("refused", "too_large", message)
    assert report(server, token, b"x" * limit)[1].reason == "checksum", "the limit itself is read"


def test_a_device_that_drops_out_during_its_upload_leaves_no_trace(
    bundle: Bundle, store_url: str, make_report: MakeReport
) -> None:
    """In a fresh interpreter, to see its standard error and what it imported."""
    command = [sys.executable, "-c", _SERVE, str(bundle.path), store_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url, *heavy = process.stdout.readline().split()
            assert heavy == []
            with connect(url) as client:
                token, _, _ = check_in(client, "a", "b", "c")
                with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as connection:
                    head = f"POST {messages.REPORT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
                    connection.sendall(f"{head}Content-Length: 100\r\n\r\n".encode() + b"half")
                assert report(client, token, make_report())[0] == 200
            process.terminate()
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, "")


def test_the_clock_goes_on_after_a_tick_that_failed(
    make_coordinator: Callable[..., Coordinator],
    now: list[float],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    coordinator = make_coordinator(selection_timeout=10)
    assert coordinator.check_in(messages.CheckIn("tiny", "a", "test")).decision == "accept"
    tick, calls = coordinator.tick, 0

    def fail_once() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyError("a fault of the program")
        tick()

    async def run() -> None:
        app = create_app(coordinator)
        async with app.router.lifespan_context(app):
            now[0] += 10
            while coordinator.configuration("t0").state == "wait" or calls < 3:
                await asyncio.sleep(0.01)

    monkeypatch.setattr(coordinator, "tick", fail_once)
    asyncio.run(asyncio.wait_for(run(), 60))
    assert caplog.messages == ["a tick failed"]
    assert "KeyError: 'a fault of the program'" in caplog.text


def test_a_database_that_fails_is_503(start_server: Start, store_url: str, tmp_path: Path) -> None:
    with connect(start_server(store_url, ROUND)[0]) as client:
        for path in tmp_path.glob("server.db*"):
            path.write_bytes(b"damaged" * 1000)
        response = client.get(messages.weights_path("0" * 64))
        assert (response.status_code, response.json()["reason"]) == (503, "store")
        assert response.headers["retry-after"] == "2"
        assert response.json()["message"].startswith(f"{tmp_path / 'server.db'}: the server's database failed: ")


def _sealed(content: bytes) -> bytes:
    return content + struct.pack("<I", zlib.crc32(content))
