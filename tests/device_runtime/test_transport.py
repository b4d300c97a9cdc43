"""HTTP over real sockets: what is tried again, how long the waits are, and what the errors say."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device_runtime.errors import InputError, IntegrityError, NetworkError, TurnedAwayError
from device_runtime.messages import (
    CheckIn,
    CheckInReply,
    Configuration,
    Enrolment,
    EnrolmentReply,
    EvaluationReport,
    ReportReply,
)
from device_runtime.server_client import ServerClient
from device_runtime.tensors import sha256
from device_runtime.transport import Caller, Response, RetryPolicy, Transport


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def connect(waits: list[float]) -> Callable[..., Transport]:
    """A transport that notes its waits instead of waiting, with the jitter at +0.5."""

    def make(url: str, attempts: int = 4, timeout: float = 60) -> Transport:
        return Transport(url, timeout, RetryPolicy(attempts, first_wait=1.0), waits.append, lambda: 0.5)

    return make


@pytest.fixture
def refused() -> str:
    """The URL of a port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_request_arrives_and_its_answer_comes_back(
    connect: Callable[..., Transport], script: Any, waits: list[float]
) -> None:
    script.answers = [(404, b"\x00answer")]
    response = connect(script.url).request("POST", "/v1/x?y=z", b"\xff\x00", {"X-Token": "t"})
    assert response == Response(404, b"\x00answer")
    ((method, path, body, headers),) = script.requests
    assert (method, path, body, headers["X-Token"]) == ("POST", "/v1/x?y=z", b"\xff\x00", "t")
    assert waits == []


def test_a_refused_connection_is_tried_again_with_doubled_waits(
    connect: Callable[..., Transport], refused: str, waits: list[float]
) -> None:
    with pytest.raises(NetworkError) as caught:
        connect(refused).request("GET", "/v1/x")
    assert str(caught.value) == f"{refused}/v1/x: Connection refused (4 attempts)"
    assert waits == pytest.approx([1.1, 2.2, 4.4])


def test_a_failing_server_is_tried_again_until_it_recovers(
    connect: Callable[..., Transport], script: Any, waits: list[float]
) -> None:
    script.answers = [(503, b"later"), (500, b""), (408, b"slow"), (200, b"now")]
    assert connect(script.url).request("POST", "/", b"body") == Response(200, b"now")
    assert waits == pytest.approx([1.1, 2.2, 4.4])
    assert [body for _, _, body, _ in script.requests] == [b"body"] * 4


def test_a_server_that_keeps_failing(connect: Callable[..., Transport], script: Any, waits: list[float]) -> None:
    script.answers = [(502, b"")]
    with pytest.raises(NetworkError) as caught:
        connect(script.url, attempts=2).request("GET", "/a")
    assert str(caught.value) == f"{script.url}/a: the server failed with status 502 (2 attempts)"
    assert (len(script.requests), len(waits)) == (2, 1)


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_s_window_is_waited_for(
    connect: Callable[..., Transport], script: Any, waits: list[float], status: int
) -> None:
    """With up to a fifth on top, never less; what is no number of seconds is passed over, and a day is the longest."""
    script.answers = [(status, b"")] * 7 + [(200, b"now")]
    script.retry_after = ["30", "0", "99999999", "Fri, 31 Dec 1999 23:59:59 GMT", "-5", "²", "9" * 12]
    assert connect(script.url, attempts=9).request("GET", "/").body == b"now"
    assert waits == pytest.approx([30 * 1.1, 2.2, 86_400 * 1.1, 8.8, 17.6, 35.2, 66.0])


def test_a_window_of_other_answers_says_nothing(
    connect: Callable[..., Transport], script: Any, waits: list[float]
) -> None:
    script.answers, script.retry_after = [(500, b""), (200, b"now")], ["30"]
    assert connect(script.url).request("GET", "/").body == b"now"
    assert waits == pytest.approx([1.1])


def test_patience_is_seconds_and_not_attempts(script: Any) -> None:
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def transport() -> Transport:
        return Transport(script.url, retry=RetryPolicy(2), sleep=sleep, jitter=lambda: 0.5, clock=lambda: now[0])

    script.answers = [(503, b"")]
    with pytest.raises(NetworkError, match=r"/: the server failed with status 503 \(4 attempts\)$"):
        transport().request("GET", "/", patience=10.0)
    assert now[0] == pytest.approx(100 + 1.1 + 2.2 + 4.4)  # another 8.8 would be too many
    with pytest.raises(NetworkError, match=r"\(1 attempts\)$"):  # one is always made
        transport().request("GET", "/", patience=0.0)
    script.retry_after = ["3600"]
    with pytest.raises(NetworkError, match=r"\(1 attempts\)$"):
        transport().request("GET", "/", patience=600.0)
    script.answers = [(200, b"ok")]
    assert transport().request("GET", "/", patience=0.0).body == b"ok"


def test_a_server_that_does_not_answer_in_time(
    connect: Callable[..., Transport], script: Any, waits: list[float]
) -> None:
    script.answers = [(0, b"")]
    with pytest.raises(NetworkError) as caught:
        connect(script.url, attempts=2, timeout=0.3).request("GET", "/a")
    assert str(caught.value) == f"{script.url}/a: timed out (2 attempts)"
    assert waits == pytest.approx([1.1])


def test_an_answer_of_the_longest_length_is_read(connect: Callable[..., Transport], script: Any) -> None:
    script.answers = [(200, b"12345")]
    assert connect(script.url).request("GET", "/a", limit=5).body == b"12345"


def test_a_longer_answer_is_not_read_and_not_asked_for_again(
    connect: Callable[..., Transport], script: Any, waits: list[float]
) -> None:
    script.answers = [(200, b"123456")]
    with pytest.raises(NetworkError) as caught:
        connect(script.url).request("GET", "/a", limit=5)
    assert str(caught.value) == f"{script.url}/a: the answer is longer than 5 bytes"
    assert (len(script.requests), waits) == (1, [])


def test_an_answer_that_breaks_off_is_asked_for_again(
    connect: Callable[..., Transport], script: Any, waits: list[float]
) -> None:
    script.answers = [(200, b"whole"), (200, b"whole")]
    script.cut = [2]
    assert connect(script.url).request("GET", "/a").body == b"whole"
    assert len(script.requests) == 2
    assert waits == pytest.approx([1.1])
    script.cut = [3, 3]
    with pytest.raises(NetworkError) as caught:
        connect(script.url, attempts=2).request("GET", "/a")
    assert str(caught.value) == f"{script.url}/a: IncompleteRead(3 bytes read, 2 more expected) (2 attempts)"


def test_a_header_that_is_none(connect: Callable[..., Transport], script: Any) -> None:
    with pytest.raises(NetworkError, match=r"/a: Invalid header value .* \(1 attempts\)$"):
        connect(script.url, attempts=1).request("GET", "/a", headers={"X": "a\nb"})


def test_a_connection_that_ends_without_an_answer(connect: Callable[..., Transport], script: Any) -> None:
    script.answers = [(0, b"")]
    script.over.set()  # so the server hangs up at once
    with pytest.raises(NetworkError, match=r"/a: Remote end closed connection without response \(1 attempts\)$"):
        connect(script.url, attempts=1).request("GET", "/a")


@pytest.mark.parametrize("url", ["http://a..b:80", "http://a b:80"])
def test_a_host_s_name_that_is_none(url: str) -> None:
    with pytest.raises(NetworkError, match=rf"^{url}/a: .* \(1 attempts\)$"):
        Transport(url, retry=RetryPolicy(1), insecure=True).request("GET", "/a")


@pytest.mark.parametrize(
    "url",
    [
        *("", "127.0.0.1:8080", "ftp://host", "http://", "http://:80", "http://host:port", "http://host:99999"),
        *(
            "http://[",
            "http://host?query",
            "http://host/a//b",
            "http://host/a/../b",
            "http://host/%61",
            "http://host/a b",
        ),
    ],
)
def test_a_url_of_another_form(url: str) -> None:
    with pytest.raises(InputError) as caught:
        Transport(url)
    assert str(caught.value) == f"server {url!r}: expected a URL such as http://127.0.0.1:8080"


@pytest.mark.parametrize("end", ["", "/"])
def test_a_server_that_has_a_part_of_an_address(script: Any, waits: list[float], end: str) -> None:
    script.answers = [(200, b""), (500, b"")]
    transport = Transport(f"{script.url}/fleets/key-board{end}", retry=RetryPolicy(1), sleep=waits.append)
    transport.request("GET", "/v1/a?b=c")
    assert script.requests[0][1] == "/fleets/key-board/v1/a?b=c"
    assert transport.server == f"{script.url}/fleets/key-board"  # a secret for one fleet is not shown to the other
    with pytest.raises(NetworkError, match=rf"^{script.url}/fleets/key-board/v1/a: "):
        transport.request("GET", "/v1/a")


def test_https_is_spoken_where_the_url_says_so(connect: Callable[..., Transport], script: Any) -> None:
    script.answers = [(200, b"")]
    secure = script.url.replace("http", "https")
    with pytest.raises(NetworkError, match=rf"^{secure}/a: .*\(1 attempts\)$"):
        connect(secure, attempts=1).request("GET", "/a")
    assert script.requests == []  # the server speaks no TLS, so that nothing was said


def test_waits_double_up_to_the_longest_and_vary_by_a_fifth() -> None:
    policy = RetryPolicy(first_wait=2.0, longest_wait=10.0)
    assert [policy.wait(failures, 0) for failures in (1, 2, 3, 4, 50)] == [2, 4, 8, 10, 10]
    assert [policy.wait(2, jitter) for jitter in (-1, 1)] == pytest.approx([3.2, 4.8])


def test_the_waits_vary_by_themselves(refused: str) -> None:
    waits: list[float] = []
    with pytest.raises(NetworkError):
        Transport(refused, retry=RetryPolicy(6, 1.0, 1.0), sleep=waits.append).request("GET", "/")
    assert len(set(waits)) == 5
    assert all(0.8 <= wait <= 1.2 for wait in waits)


CALLS: list[tuple[str, Callable[[ServerClient], object]]] = [
    ("enrolment", lambda server: server.enrol(Enrolment("code", "c", "secret"))),
    ("check-in", lambda server: server.check_in(CheckIn("p", "c", "r"))),
    ("configuration", lambda server: server.configuration("token")),
    ("report", lambda server: server.report("token", b"update")),
    ("report", lambda server: server.report("token", EvaluationReport(3, 10, 7.0, 2.5))),
]


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"<html>", b"[]", b"1", b"{}", b'{"reason":"x","message":["y"]}', b"\xff", b"[" * 100_000),
        *(b'{"decision":"accept","retry_after_seconds":"1"}', b'{"state":"start","work":[]}', b'{"verdict":1}'),
        *(b'{"decision":"accept","retry_after_seconds":-1}', b'{"state":"wait","retry_after_seconds":NaN}'),
        *(b'{"decision":"accept","retry_after_seconds":1e300}', b'{"decision":"perhaps"}', b'{"state":"other"}'),
        *(b'{"decision":"accept","token":"a\\nb"}', b'{"state":"start","round_number":-1}', b'{"verdict":"maybe"}'),
        *(b'{"state":"start","task":"other"}', b'{"state":"start","task":["training"]}', b'{"verdict":["enrolled"]}'),
        *(b'{"state":"start","round_number":true}', b'{"decision":"accept","retry_after_seconds":true}'),
        *(b'{"state":"start","round_number":1.5}', b'{"state":"start","encoded":[1]}', b'{"state":true}'),
    ],
)
@pytest.mark.parametrize(("what", "call"), CALLS, ids=lambda value: value if isinstance(value, str) else "")
def test_an_answer_that_is_not_understood(
    connect: Callable[..., Transport], script: Any, what: str, call: Callable[[ServerClient], object], body: bytes
) -> None:
    script.answers = [(400, body)]
    with pytest.raises(NetworkError) as caught:
        call(ServerClient(connect(script.url)))
    assert str(caught.value) == f"{what}: the server's answer (status 400) is not understood; is it a pocketfed server?"
    script.answers = [(403, body)]
    with pytest.raises(TurnedAwayError) as away:
        call(ServerClient(connect(script.url)))
    assert str(away.value) == f"{what}: the server's answer (status 403) is not understood; is it a pocketfed server?"


@pytest.mark.parametrize(("what", "call"), CALLS, ids=lambda value: value if isinstance(value, str) else "")
def test_what_the_server_says_of_itself_is_passed_on(
    connect: Callable[..., Transport], script: Any, what: str, call: Callable[[ServerClient], object]
) -> None:
    script.answers = [(413, b'{"reason":"too_large","message":"a check-in has at most 4096 bytes"}')]
    with pytest.raises(NetworkError) as caught:
        call(ServerClient(connect(script.url)))
    assert str(caught.value) == f"{what}: the server answers with status 413: a check-in has at most 4096 bytes"


def test_the_calls_of_a_device(script: Any) -> None:
    script.answers = [(403, b'{"verdict":"refused","reason":"code"}')]
    script.answers += [(200, b'{"decision":"accept","token":"t"}'), (200, b'{"state":"wait","task":"evaluation"}')]
    script.answers += [(409, b'{"verdict":"aborted","reason":"late"}'), (200, b'{"verdict":"accepted"}')]
    client = ServerClient(Transport(script.url, caller=Caller("c", "s:é")))
    assert [call(client) for _, call in CALLS] == [
        EnrolmentReply("refused", "code"),
        CheckInReply("accept", token="t"),
        Configuration("wait", task="evaluation"),
        ReportReply("aborted", "late"),
        ReportReply("accepted"),
    ]
    enrolment, check_in, configuration, update, evaluation = script.requests
    assert enrolment[:3] == ("POST", "/v1/enrol", b'{"code": "code", "client": "c", "secret": "secret"}')
    sent = b'{"population": "p", "client": "c", "runtime": "r", "tasks": ["training"]}'
    assert check_in[:3] == ("POST", "/v1/check-in", sent)
    assert configuration[:3] == ("GET", "/v1/configuration", b"")
    assert update[:3] == ("POST", "/v1/report", b"update")
    sent = b'{"round_number": 3, "count": 10, "correct": 7.0, "loss_sum": 2.5}'
    assert evaluation[:3] == ("POST", "/v1/report", sent)
    json, bytes_ = "application/json", "application/octet-stream"
    kinds = [headers.get("Content-Type") for *_, headers in script.requests]
    assert kinds == [json, json, None, bytes_, json]
    tokens = [headers.get("Pocketfed-Token") for *_, headers in script.requests]
    assert tokens == [None, None, "token", "token", "token"]
    assert {headers["Authorization"] for *_, headers in script.requests} == {"Basic YzpzOsOp"}


UNKNOWN = (
    "the server does not know this device by its secret, or has revoked it: enrol it anew with 'pocketfed-device enrol'"
    " and a code of the fleet's operator"
)


def test_a_caller_s_secret_is_in_no_text_of_it() -> None:
    assert str(Caller("c", "s")) == repr(Caller("c", "s")) == "Caller(name='c')"


def test_a_device_that_the_server_does_not_know(script: Any, waits: list[float], tmp_path: Path) -> None:
    """It is said at once, whatever was asked for."""
    script.answers = [(401, b'{"reason":"unknown_caller","message":"not enrolled"}')]
    server = ServerClient(Transport(script.url, sleep=waits.append, caller=Caller("phone", "s")))
    downloads: list[Callable[[ServerClient], object]] = [
        lambda server: server.download("/f", sha256(b""), 99),
        lambda server: server.download_optional("/f", 99),
        lambda server: server.fetch("/f", sha256(b"f"), 4, tmp_path / "f"),
    ]
    for call in [*(call for _, call in CALLS), *downloads]:
        with pytest.raises(TurnedAwayError) as caught:
            call(server)
        assert str(caught.value) == UNKNOWN
    assert waits == []


@pytest.mark.parametrize(
    "host", ["fleet.example", "192.0.2.1", "[2001:db8::1]", "localhost.example", "127.1", "0.0.0.0"]
)
def test_without_tls_nothing_is_said_to_another_machine(host: str) -> None:
    url = f"http://{host}:8080"
    with pytest.raises(InputError) as caught:
        Transport(url)
    assert str(caught.value) == (
        f"server {url!r}: what goes there without TLS can be read on the way, the caller's secret too; name an"
        " https:// server, or say --insecure"
    )
    assert Transport(url, insecure=True).server == url
    assert Transport(f"https://{host}").server == f"https://{host}:443"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.1", "[::1]"])
def test_what_stays_on_this_machine_needs_no_tls(host: str) -> None:
    assert Transport(f"http://{host}/").server == f"http://{host.lower()}:80"


def test_a_download_is_what_was_asked_for_or_refused(connect: Callable[..., Transport], script: Any) -> None:
    script.answers = [(200, b"file"), (200, b"other"), (404, b"file"), (200, b"file")]
    server, identity = ServerClient(connect(script.url)), sha256(b"file")
    assert server.download("/f", identity, 4) == b"file"
    with pytest.raises(IntegrityError, match=f"^/f: what the server sent does not have the SHA-256 {identity}$"):
        server.download("/f", identity, 5)
    with pytest.raises(NetworkError, match=r"^/f: the server answers with status 404$"):
        server.download("/f", identity, 4)
    with pytest.raises(NetworkError, match="the answer is longer than 3 bytes"):
        server.download("/f", identity, 3)
