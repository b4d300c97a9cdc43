"""The server as a process of its own, over real HTTP on 127.0.0.1: who may call, statuses, downloads, reports."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from aggregation_server.aggregation.validation import largest_update
from aggregation_server.rounds import RoundConfig
from aggregation_server.server import Listening, serve
from aggregation_server.task import Task
from aggregation_server.web.ranges import asked_range
from device_runtime import messages
from device_runtime.bundle import FILES, MANIFEST, MANIFEST_HASH, MANIFEST_SIGNATURE, WEIGHTS, Bundle, open_bundle
from device_runtime.errors import InputError, NetworkError
from device_runtime.messages import CheckInReply, ReportReply
from device_runtime.tensors import sha256
from device_runtime.weights import load_weights
from tests.aggregation_server.fleet import evaluation, secret_of
from tests.aggregation_server.running import KEYS, Callers, Running

Start = Callable[..., Running]
MakeReport = Callable[..., bytes]
ROUND = RoundConfig(goal_count=2, selection_timeout=60, reporting_timeout=60)
UNKNOWN = {"reason": "unknown_caller", "message": "not enrolled, revoked, or with another secret"}
NOBODY = {"reason": "no_caller", "message": "expected 'Authorization: Basic …' with a name and its secret"}
NO_TOKEN = "expected the header 'Pocketfed-Token: TOKEN', with the token of the check-in"
FOREVER = "public, max-age=31536000, immutable"

_SERVE = """
import sys
from pathlib import Path
from aggregation_server.rounds import RoundConfig
from aggregation_server.server import Listening, serve
from aggregation_server.task import Task
from aggregation_server.web.callers import Keys
from device_runtime.bundle import open_bundle
def announce(url):
    heavy = {"tensorflow", "tflite_runtime", "ai_edge_litert", "models"} & set(sys.modules)
    print(url, *heavy, flush=True)
bundle, folder = open_bundle(Path(sys.argv[1])), Path(sys.argv[2])
places = (f"sqlite:///{folder / 'server.db'}", folder / "spool", Keys(sys.argv[3], sys.argv[4]), Listening())
serve(bundle, Task(RoundConfig(goal_count=2)), *places, announce, True)
"""


@pytest.fixture(scope="module")
def server(start_server: Start) -> Running:
    """A server in the reporting phase of a round that this module's tests never finish."""
    config = RoundConfig(goal_count=50, selection_timeout=0.2, reporting_timeout=600)
    return start_server(config, retry_seconds=0.5)


@pytest.fixture(scope="module")
def token(server: Running) -> str:
    """The token of the device `a`, whose round started by its selection's timeout: nobody asked before."""
    token = server.check_in("a")
    while server.configuration("a", token).state == "wait":
        time.sleep(0.02)
    return token


def test_a_whole_round(start_server: Start, bundle: Bundle, make_report: MakeReport) -> None:
    server = start_server(ROUND, rounds=1)
    first, second = server.check_in("a"), server.check_in("b")
    assert server.configuration("a", first).state == "wait"
    third = server.check_in("c")
    rejected = server.checked_in("d")
    assert (rejected.status_code, rejected.json()["reason"]) == (200, "cohort_full")
    start = server.configuration("a", first)
    assert (start.state, start.bundle) == ("start", bundle.identity)
    weights = server.device("a").get(messages.weights_path(start.weights))
    assert sha256(weights.content) == start.weights
    assert server.report("b", make_report(value=1.0), second) == (200, ReportReply("accepted"))
    assert server.report("a", make_report(value=2.0), first)[0] == 200
    late = ReportReply("aborted", "late", "round 1 already has all its reports")
    assert server.report("c", make_report(value=1000.0), third) == (409, late)
    assert server.configuration("c", third).state == "aborted"
    now = server.status_when("complete", True)
    assert (now["phase"], now["committed_rounds"], now["counts"]["late"]) == ("complete", 1, 1)
    after = server.viewer.get(messages.weights_path(now["history"][0]["weights"])).content
    for tensor, initial in zip(load_weights(after, bundle.manifest.tensors), bundle.initial_weights(), strict=True):
        np.testing.assert_array_equal(tensor, initial + np.float32(1.5))
    done = server.checked_in("a")
    assert (done.status_code, done.json()["decision"]) == (200, "complete")


def test_an_evaluation(start_server: Start, make_report: MakeReport) -> None:
    server = start_server(RoundConfig(1, over_selection=1), rounds=1, evaluate_every=1)
    assert server.report("a", make_report(), server.check_in("a"))[0] == 200
    server.status_when("round_task", "evaluation")
    token = server.check_in("a")
    assert server.configuration("a", token).task == "evaluation"
    code, reply = server.report("a", b"{}", token)
    assert (code, reply.verdict, reply.reason) == (400, "refused", "format")
    assert server.report("a", evaluation(1, count=8, correct=6.0), token) == (200, ReportReply("accepted"))
    status = server.status_when("complete", True)
    assert (status["history"][1]["task"], status["history"][1]["accuracy"]) == ("evaluation", 0.75)


def test_a_round_goes_on_after_a_kill(
    start_server: Start, store_url: str, spool_folder: Path, make_report: MakeReport
) -> None:
    first = start_server(ROUND, store_url, spool_folder)
    tokens = {name: first.check_in(name) for name in "abc"}
    assert first.report("a", make_report(value=1.0), tokens["a"])[0] == 200
    before = first.status()
    first.kill()
    second = start_server(ROUND, store_url, spool_folder)
    again = second.status()
    for key in ("weights", "initial_weights", "committed_rounds", "round", "phase", "cohort", "reports", "history"):
        assert again[key] == before[key]
    assert second.report("a", make_report(), tokens["a"])[1].reason == "duplicate"
    assert second.configuration("b", tokens["b"]).state == "start"
    assert second.report("b", make_report(value=3.0), tokens["b"])[0] == 200
    status = second.status_when("committed_rounds", 1)
    assert status["history"][0]["clients"] == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_with_exit_code_0(start_server: Start, number: int) -> None:
    server = start_server(ROUND)
    assert server.status()["phase"] == "selection"
    assert server.process.pid is not None
    os.kill(server.process.pid, number)
    server.process.join(20)
    assert server.process.exitcode == 0


def run(bundle: Bundle, folder: Path, listening: Listening, anybody: bool = False) -> None:
    places = (f"sqlite:///{folder / 'server.db'}", folder / "spool", KEYS, listening)
    serve(bundle, Task(ROUND), *places, print, anybody)


def test_a_port_in_use_is_one_line_and_leaves_no_database(bundle: Bundle, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(NetworkError) as caught:
            run(bundle, tmp_path, Listening(port=port))
    message = f"can't listen at 127.0.0.1:{port}: Address already in use; choose another --host or --port"
    assert str(caught.value) == message
    assert not list(tmp_path.iterdir())


def test_what_would_be_heard_by_others_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Listening("0.0.0.0")
    assert str(caught.value) == (
        "0.0.0.0: secrets and updates would go over the network as they are; give --tls-cert and --tls-key,"
        " or --insecure where something in front of this server speaks TLS"
    )
    with pytest.raises(InputError) as caught:
        Listening(certificate=tmp_path / "cert.pem")
    assert str(caught.value) == "TLS needs a certificate and its key: give both --tls-cert and --tls-key"
    with pytest.raises(InputError) as caught:
        run(bundle, tmp_path, Listening("0.0.0.0", insecure=True), anybody=True)
    assert str(caught.value) == ("0.0.0.0: with --open-enrolment everybody could take part; it is for 127.0.0.1 alone")
    for host in ("localhost", "127.0.0.2", "::1"):
        Listening(host)


# Who calls.


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Basic",
        "Basic abc",
        "Bearer abc",
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Basic " + base64.b64encode(b"\xff:x").decode(),
        "Basic " + base64.b64encode(b"a\n:x").decode(),
        "Basic " + base64.b64encode(b"x" * 65 + b":x").decode(),
        "Basic " + base64.b64encode(b"a:" + b"x" * 500).decode(),
    ],
)
def test_who_names_nobody_is_asked_for_a_name(server: Running, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    for method, path in (
        ("POST", messages.CHECK_IN),
        ("GET", messages.CONFIGURATION),
        ("POST", messages.REPORT),
        ("GET", messages.LATEST_WEIGHTS),
        ("GET", messages.STATUS),
        ("POST", "/v1/pause"),
    ):
        answer = server.nobody.request(method, path, headers=headers)
        assert (answer.status_code, answer.json()) == (401, NOBODY)
        assert answer.headers["www-authenticate"].startswith('Basic realm="pocketfed"')


def test_who_is_not_known_may_do_nothing(server: Running, bundle: Bundle, token: str) -> None:
    """A name that nobody has, another's secret, and people with a wrong key: all are told the same."""
    checked_in = {"population": "tiny", "client": "a", "runtime": "test"}
    for auth in (("nobody", "x" * 40), ("a", secret_of("b")), ("operator", KEYS.viewer), ("viewer", "x" * 40)):
        with httpx.Client(base_url=server.url, auth=auth, trust_env=False) as stranger:
            person = auth[0] in ("operator", "viewer")
            for answer in (
                stranger.post(messages.CHECK_IN, json=checked_in),
                stranger.get(messages.CONFIGURATION, headers={messages.TOKEN: token}),
                stranger.post(messages.REPORT, content=b"x", headers={messages.TOKEN: token}),
            ):
                assert answer.status_code == (403 if person else 401), answer.text
                assert person or answer.json() == UNKNOWN
            for answer in (
                stranger.get(messages.bundle_path(bundle.identity, MANIFEST)),
                stranger.get(messages.weights_path("0" * 64)),
                stranger.get(messages.encoded_weights_path("0" * 64)),
                stranger.get(messages.LATEST_WEIGHTS),
                stranger.get(messages.STATUS),
                stranger.get("/v1/rounds"),
                stranger.get("/v1/devices"),
                stranger.post("/v1/pause", json={}),
            ):
                assert (answer.status_code, answer.json()) == (401, UNKNOWN)


def test_people_are_no_devices_and_devices_no_people(server: Running, token: str) -> None:
    checked_in = {"population": "tiny", "client": "operator", "runtime": "test"}
    for person in (server.operator, server.viewer):
        answer = person.post(messages.CHECK_IN, json=checked_in)
        message = "only a device may do this: call with a name that is enrolled"
        assert (answer.status_code, answer.json()) == (403, {"reason": "devices_only", "message": message})
        assert person.get(messages.LATEST_WEIGHTS).status_code == 200
    for path in (messages.STATUS, "/v1/rounds", "/v1/devices"):
        answer = server.device("a").get(path)
        assert (answer.status_code, answer.json()) == (401, UNKNOWN)
    assert server.device("a").post("/v1/pause", json={}).status_code == 401


def test_a_viewer_may_look_and_change_nothing(server: Running) -> None:
    for path in (messages.STATUS, "/v1/rounds", "/v1/devices"):
        assert server.viewer.get(path).status_code == 200
    message = "only the operator may do this: call as 'operator' with that key"
    for path in ("pause", "resume", "rollback", "release", "enrolment-codes", "revoke"):
        answer = server.viewer.post(f"/v1/{path}", json={})
        assert (answer.status_code, answer.json()) == (403, {"reason": "operator_only", "message": message})


def test_without_a_token(server: Running) -> None:
    answer = server.device("a").get(messages.CONFIGURATION)
    assert (answer.status_code, answer.json()) == (401, {"reason": "missing_token", "message": NO_TOKEN})
    answer = server.device("a").post(messages.REPORT, content=b"update")
    assert (answer.status_code, ReportReply(**answer.json())) == (
        401,
        ReportReply("refused", "missing_token", NO_TOKEN),
    )


def test_another_device_s_token(server: Running, token: str, make_report: MakeReport) -> None:
    unknown = ReportReply("refused", "unknown_token", "no round of this server gave out this token")
    assert server.report("b", make_report(), token) == (400, unknown)
    assert server.report("b", make_report(), "nonsense") == (400, unknown)
    assert server.configuration("b", token).state == "aborted"


# Enrolment.


def test_enrolment_by_code(start_server: Start) -> None:
    server = start_server(ROUND, anybody=False)
    body = {"code": "", "client": "phone", "secret": "x" * 40}
    answer = server.nobody.post(messages.ENROL, json=body)
    assert (answer.status_code, answer.json()["verdict"], answer.json()["reason"]) == (403, "refused", "code")
    first, second = server.operator.post("/v1/enrolment-codes", json={"count": 2, "hours": 1}).json()["codes"]
    answer = server.nobody.post(messages.ENROL, json=body | {"code": first})
    assert (answer.status_code, answer.json()["verdict"]) == (200, "enrolled")
    answer = server.nobody.post(messages.ENROL, json=body | {"code": first, "client": "other"})
    assert (answer.status_code, answer.json()["reason"]) == (403, "code")
    for wrong, reason in (({"client": "viewer"}, "client"), ({"secret": "short"}, "secret")):
        answer = server.nobody.post(messages.ENROL, json=body | {"code": second} | wrong)
        assert (answer.status_code, answer.json()["reason"]) == (403, reason)
    phone = server.client(("phone", "x" * 40))
    assert phone.get(messages.LATEST_WEIGHTS).status_code == 200
    assert server.operator.post("/v1/revoke", json={"client": "phone"}).status_code == 200
    answer = phone.get(messages.LATEST_WEIGHTS)
    assert (answer.status_code, answer.json()) == (401, UNKNOWN)
    (bound,) = server.operator.post("/v1/enrolment-codes", json={"client": "phone"}).json()["codes"]
    again = body | {"code": bound, "secret": "y" * 40}
    assert server.nobody.post(messages.ENROL, json=again).status_code == 200
    assert phone.get(messages.LATEST_WEIGHTS).status_code == 401
    assert server.client(("phone", "y" * 40)).get(messages.LATEST_WEIGHTS).status_code == 200
    (record,) = server.viewer.get("/v1/devices").json()
    assert (record["name"], record["state"], record["reports"]) == ("phone", "enrolled", 0)
    assert "secret" not in record


# People.


def test_an_operator_s_day(start_server: Start, make_report: MakeReport) -> None:
    server = start_server(RoundConfig(1, over_selection=1))
    for number in (1, 2):
        assert server.report("a", make_report(round_number=number), server.check_in("a"))[0] == 200
        server.status_when("committed_rounds", number)
    assert server.operator.post("/v1/pause", json={}).json() == {}
    assert server.status()["phase"] == "paused"
    assert server.checked_in("a").json()["reason"] == "paused"
    initial = server.status()["initial_weights"]
    record = server.operator.post("/v1/rollback", json={"version": 0}).json()
    assert (record["number"], record["task"], record["weights"]) == (3, "rollback", initial)
    answer = server.operator.post("/v1/release", json={"version": 1})
    history = server.viewer.get("/v1/rounds").json()
    assert answer.json() == {"weights": history[0]["weights"]}
    assert server.operator.post("/v1/resume", json={}).json() == {}
    status = server.status_when("phase", "selection")
    assert (status["released"], status["committed_rounds"], status["weights"]) == (1, 3, initial)
    assert server.checked_in("a").json()["decision"] == "accept"
    assert [record["number"] for record in history] == [1, 2, 3]
    assert server.viewer.get("/v1/rounds", params={"limit": 1}).json() == history[-1:]
    assert server.viewer.get("/v1/rounds", params={"before": history[-1]["id"], "limit": 1}).json() == history[1:2]
    for path, body in (("rollback", {"version": 9}), ("release", {"version": -1}), ("revoke", {"client": "x"})):
        answer = server.operator.post(f"/v1/{path}", json=body)
        assert (answer.status_code, answer.json()["reason"]) == (409, "impossible")
    answer = server.operator.post("/v1/enrolment-codes", json={"count": 0})
    message = "enrolment codes: count should be from 1 to 10000, not 0"
    assert (answer.status_code, answer.json()) == (409, {"reason": "impossible", "message": message})


def test_a_call_that_changes_something_is_json(server: Running) -> None:
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
        answer = server.operator.post("/v1/pause", content=b"{}", headers=headers)
        message = "expected a body with Content-Type: application/json"
        assert (answer.status_code, answer.json()) == (415, {"reason": "not_json", "message": message})
    json_type = {"Content-Type": "application/json; charset=utf-8"}
    answer = server.operator.post("/v1/revoke", content=b" " * 5000, headers=json_type)
    message = "a body here has at most 4096 bytes"
    assert (answer.status_code, answer.json()) == (413, {"reason": "too_large", "message": message})
    for path, body, message in (
        ("pause", b"", "body: Invalid JSON"),
        ("pause", b"[]", "body: Input should be an object"),
        ("rollback", b"{}", "version: Field required"),
        ("rollback", b'{"version": "x"}', "version: Input should be a valid integer"),
        ("enrolment-codes", b'{"hours": "x"}', "hours: Input should be a valid number"),
        ("revoke", b'{"client": 1}', "client: Input should be a valid string"),
    ):
        answer = server.operator.post(f"/v1/{path}", content=body, headers=json_type)
        assert (answer.status_code, answer.json()["reason"]) == (400, "malformed")
        assert answer.json()["message"].startswith(message)
    assert not server.status()["paused"]


@pytest.mark.parametrize(
    ("path", "query", "message"),
    [
        ("/v1/rounds", "limit=0", "limit: expected a whole number from 1 to 1000"),
        ("/v1/rounds", "limit=1001", "limit: expected a whole number from 1 to 1000"),
        ("/v1/rounds", "limit=²", "limit: expected a whole number from 1 to 1000"),
        ("/v1/rounds", "before=x", "before: expected a whole number from 1 to 2147483647"),
        ("/v1/rounds", "before=" + "9" * 5000, "before: expected a whole number from 1 to 2147483647"),
        ("/v1/devices", "limit=10001", "limit: expected a whole number from 1 to 10000"),
        ("/v1/devices", "after=a%20b", "after: expected the name of a device"),
        ("/v1/status", "history=-1", "history: expected a whole number from 0 to 1000"),
    ],
)
def test_a_page_that_is_none(server: Running, path: str, query: str, message: str) -> None:
    answer = server.viewer.get(f"{path}?{query}")
    assert (answer.status_code, answer.json()) == (400, {"reason": "malformed", "message": message})


def test_devices_come_in_pages(server: Running) -> None:
    for name in ("p1", "p2", "p3"):
        server.device(name)
    names = [record["name"] for record in server.viewer.get("/v1/devices", params={"after": "p1"}).json()]
    assert names[:2] == ["p2", "p3"]
    page = server.viewer.get("/v1/devices", params={"after": "p1", "limit": 1}).json()
    assert [record["name"] for record in page] == ["p2"]


# Downloads.


def test_a_device_gets_the_whole_bundle_and_no_other_file(server: Running, bundle: Bundle, tmp_path: Path) -> None:
    device = server.device("a")
    for name in (*FILES, MANIFEST, MANIFEST_HASH):
        response = device.get(messages.bundle_path(bundle.identity, name))
        assert (response.status_code, response.headers["cache-control"]) == (200, FOREVER)
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
        "/redoc",
        "/v2/status",
    ):
        response = device.get(path)
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/json"
    messages_of = {
        messages.bundle_path("0" * 64, MANIFEST): "no such file of a bundle that this server has",
        messages.weights_path("0" * 64): "no such version of the weights",
        messages.encoded_weights_path("0" * 64): "no such encoded weights",
    }
    for path, message in messages_of.items():
        assert device.get(path).json() == {"reason": "not_found", "message": message}


def test_a_signature_is_served_where_there_is_one_and_never_cached(server: Running, bundle: Bundle) -> None:
    """The bundle may be signed, or signed anew, while its server runs; its identity stays the same."""
    path, url = bundle.file(MANIFEST_SIGNATURE), messages.bundle_path(bundle.identity, MANIFEST_SIGNATURE)
    device = server.device("a")
    try:
        for content in (b"one", b"another"):
            path.write_bytes(content)
            response = device.get(url)
            assert (response.status_code, response.content) == (200, content)
            assert response.headers["cache-control"] == "no-store"
    finally:
        path.unlink()
    response = device.get(url)
    assert (response.status_code, response.headers["cache-control"]) == (404, "no-store")


def test_a_part_of_a_file_and_of_weights_is_given_and_counted(start_server: Start, bundle: Bundle) -> None:
    server = start_server(ROUND)
    device, weights = server.device("a"), bundle.file(WEIGHTS).read_bytes()
    identity = bundle.manifest.files[WEIGHTS].sha256
    assert server.status()["initial_weights"] == identity
    read = 0
    for url in (messages.weights_path(identity), messages.bundle_path(bundle.identity, WEIGHTS)):
        whole = device.get(url)
        assert (whole.status_code, whole.content) == (200, weights)
        assert (whole.headers["etag"], whole.headers["accept-ranges"]) == (f'"{identity}"', "bytes")
        assert whole.headers["cache-control"] == FOREVER
        for asked, start, stop in (
            ("bytes=0-", 0, None),
            ("bytes=10-", 10, None),
            ("bytes=3-7", 3, 8),
            ("bytes=-5", -5, None),
        ):
            part = device.get(url, headers={"Range": asked, "If-Range": whole.headers["etag"]})
            assert (part.status_code, part.content) == (206, weights[start:stop])
            assert part.headers["etag"] == whole.headers["etag"]
            first = range(len(weights))[start]
            where = f"bytes {first}-{first + len(part.content) - 1}/{len(weights)}"
            assert part.headers["content-range"] == where
        behind = device.get(url, headers={"Range": f"bytes={len(weights)}-"})
        assert (behind.status_code, behind.headers["content-range"]) == (416, f"bytes */{len(weights)}")
        other = device.get(url, headers={"Range": "bytes=10-", "If-Range": '"other"'})
        assert (other.status_code, other.content) == (200, weights)
        read += 4 * len(weights) - 10 + 5 + 5
    end = time.monotonic() + 20
    while server.status()["counts"]["download_bytes"] != read:  # it is noted a moment later
        assert time.monotonic() < end, (server.status()["counts"], read)
        time.sleep(0.05)


def test_the_manifest_s_etag_is_the_identity(server: Running, bundle: Bundle) -> None:
    response = server.device("a").get(messages.bundle_path(bundle.identity, MANIFEST), headers={"Range": "bytes=2-"})
    assert (response.status_code, response.headers["etag"]) == (206, f'"{bundle.identity}"')
    assert response.content == bundle.file(MANIFEST).read_bytes()[2:]


def test_encoded_weights_come_by_their_content_whole_or_in_part(start_server: Start, make_report: MakeReport) -> None:
    server = start_server(RoundConfig(1, over_selection=1), downlink="q1")
    holds = server.status()["weights"]
    assert server.report("a", make_report(value=0.5), server.check_in("a"))[0] == 200
    server.status_when("committed_rounds", 1)
    asked = server.configuration("a", server.check_in("a"), holds)
    (identity,) = asked.encoded
    assert asked.base == holds
    device = server.device("a")
    whole = device.get(messages.encoded_weights_path(identity))
    assert (whole.status_code, sha256(whole.content)) == (200, identity)
    assert (whole.headers["etag"], whole.headers["cache-control"]) == (f'"{identity}"', FOREVER)
    part = device.get(messages.encoded_weights_path(identity), headers={"Range": "bytes=7-"})
    assert (part.status_code, part.content) == (206, whole.content[7:])
    behind = device.get(messages.encoded_weights_path(identity), headers={"Range": "bytes=9999-"})
    assert (behind.status_code, behind.headers["content-range"]) == (416, f"bytes */{len(whole.content)}")


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


def test_the_latest_weights_and_the_status_are_never_cached(server: Running) -> None:
    weights = server.viewer.get(messages.weights_path(server.status()["weights"]))
    assert weights.headers["cache-control"] == FOREVER
    latest = server.viewer.get(messages.LATEST_WEIGHTS)
    assert (latest.content, latest.headers["cache-control"]) == (weights.content, "no-store")
    assert server.viewer.get(messages.STATUS).headers["cache-control"] == "no-store"


# Check-ins and reports.


@pytest.mark.parametrize(
    ("body", "code", "reason", "message"),
    [
        (b"{", 400, "malformed", "check-in: body: Invalid JSON"),
        (b"\xff", 400, "malformed", "check-in: body: Invalid JSON"),
        (b'{"population": "tiny", "client": "a"}', 400, "malformed", "check-in: runtime: Field required"),
        (b'{"population": "tiny", "client": 1, "runtime": ""}', 400, "malformed", "check-in: client: Input should be"),
        (
            b'{"population": "tiny", "client": "a", "runtime": "", "tasks": 1}',
            400,
            "malformed",
            "check-in: tasks: Input should be",
        ),
        (b" " * 5000, 413, "too_large", "a check-in has at most 4096 bytes"),
        (b'{"population": "tiny", "client": "b", "runtime": ""}', 400, "client", None),
        (b'{"population": "other", "client": "a", "runtime": ""}', 404, "population", None),
    ],
)
def test_check_ins_that_are_malformed(
    server: Running, body: bytes, code: int, reason: str, message: str | None
) -> None:
    response = server.device("a").post(messages.CHECK_IN, content=body)
    assert (response.status_code, response.json()["reason"]) == (code, reason)
    if message is None:
        assert CheckInReply(**response.json()).decision == "reject"
    else:
        assert response.json()["message"].startswith(message)


def test_an_enrolment_that_is_malformed(server: Running) -> None:
    response = server.nobody.post(messages.ENROL, content=b'{"code": ""}')
    message = "enrolment: client: Field required"
    assert (response.status_code, response.json()) == (400, {"reason": "malformed", "message": message})
    response = server.nobody.post(messages.ENROL, content=b" " * 5000)
    message = "an enrolment has at most 4096 bytes"
    assert (response.status_code, response.json()) == (413, {"reason": "too_large", "message": message})


def test_updates_that_do_not_validate_are_refused_with_their_reason(
    server: Running, token: str, make_report: MakeReport
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
    before = server.status()["counts"]["refused"]
    for reason, body in bodies.items():
        code, reply = server.report("a", body, token)
        assert (code, reply.verdict, reply.reason) == (400, "refused", reason)
    status = server.status()
    assert {reason: status["counts"]["refused"][reason] - before.get(reason, 0) for reason in bodies} == dict.fromkeys(
        bodies, 1
    )
    assert status["reports"] == 0


def test_a_report_counts_once(start_server: Start, make_report: MakeReport) -> None:
    server = start_server(ROUND)
    token, _, _ = (server.check_in(name) for name in "abc")
    assert server.report("a", make_report(), token)[0] == 200
    duplicate = ReportReply("refused", "duplicate", "this token's report was already counted")
    assert server.report("a", make_report(), token) == (400, duplicate)
    assert server.status()["reports"] == 1


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_larger_than_any_valid_update(server: Running, bundle: Bundle, token: str, declared: bool) -> None:
    limit = max(largest_update(bundle.manifest.tensors), 4096)

    def chunks() -> Iterator[bytes]:
        yield b"x" * limit
        yield b"x"

    message = f"an update for this model has at most {limit} bytes"
    content: Any = b"x" * (limit + 1) if declared else chunks()
    assert server.report("a", content, token) == (413, ReportReply("refused", "too_large", message))
    assert server.report("a", b"x" * limit, token)[1].reason == "checksum", "the limit itself is read"


def test_a_device_that_drops_out_during_its_upload_leaves_no_trace(
    bundle: Bundle, tmp_path: Path, make_report: MakeReport
) -> None:
    """In a fresh interpreter, to see its standard error and what it imported."""
    command = [sys.executable, "-c", _SERVE, str(bundle.path), str(tmp_path), KEYS.operator, KEYS.viewer]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url, *heavy = process.stdout.readline().split()
            assert heavy == []
            server = Callers(url, KEYS)
            tokens = {name: server.check_in(name) for name in "abc"}
            basic = base64.b64encode(f"a:{secret_of('a')}".encode()).decode()
            with socket.create_connection((server.nobody.base_url.host, server.nobody.base_url.port or 0)) as line:
                head = f"POST {messages.REPORT} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {basic}\r\n"
                head += f"{messages.TOKEN}: {tokens['a']}\r\nContent-Length: 100\r\n\r\n"
                line.sendall(head.encode() + b"half")
            assert server.report("a", make_report(), tokens["a"])[0] == 200
            server.disconnect()
            process.terminate()
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, "")


def test_a_database_that_fails_is_503(start_server: Start, tmp_path: Path) -> None:
    server = start_server(ROUND, f"sqlite:///{tmp_path / 'server.db'}")
    device = server.device("a")
    for path in tmp_path.glob("server.db*"):
        path.write_bytes(b"damaged" * 1000)
    response = device.get(messages.weights_path("0" * 64))
    assert (response.status_code, response.json()["reason"]) == (503, "store")
    assert response.headers["retry-after"] == "2"
    assert response.json()["message"].startswith(f"{tmp_path / 'server.db'}: the server's database failed: ")
    server.kill()  # it would go on trying


def test_health_and_the_description_of_the_calls_are_for_everybody(server: Running) -> None:
    assert server.nobody.get("/healthz").json() == {"status": "alive"}
    paths = server.nobody.get("/openapi.json").json()["paths"]
    assert {messages.ENROL, messages.CHECK_IN, messages.REPORT, messages.STATUS} <= paths.keys()
    assert json.dumps(paths).count("Problem") > 10


def _sealed(content: bytes) -> bytes:
    return content + struct.pack("<I", zlib.crc32(content))
