"""Clients that keep a server waiting: real sockets, and a server that is in more of a hurry than usual."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import logging
import multiprocessing
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from aggregation_server.access.quotas import Quotas
from aggregation_server.rounds import RoundConfig
from aggregation_server.server import _room_for
from aggregation_server.web.answers import ContentResponse
from aggregation_server.web.connections import Connections, bounded_protocol
from device_runtime import messages
from tests.aggregation_server.fleet import secret_of
from tests.aggregation_server.running import Running

IDLE, SLOW = 1.0, 1.5
LATER = 8.0  # that a busy machine may take longer
CONNECTIONS = 6


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Running]) -> Running:
    """A server that waits for a second or two."""
    quotas = Quotas(idle_seconds=IDLE, slow_seconds=SLOW, failure_rate=0)
    return start_server(RoundConfig(100, selection_timeout=1000), quotas=quotas)


@pytest.fixture(scope="module")
def narrow(start_server: Callable[..., Running]) -> Running:
    """A server with room for few connections."""
    return start_server(RoundConfig(100, selection_timeout=1000), quotas=Quotas(connections=CONNECTIONS))


@contextmanager
def connected(server: Running, *parts: bytes) -> Iterator[socket.socket]:
    """A connection on which `parts` were sent."""
    url = httpx.URL(server.url)
    with closing(socket.create_connection((url.host, url.port or 80), timeout=20)) as connection:
        for part in parts:
            connection.sendall(part)
        yield connection


def until_closed(connection: socket.socket, trickle: bytes = b"") -> tuple[float, bytes]:
    """Seconds until the server closes a connection on which every tenth of a second brings a byte, and what it said."""
    began, heard, left = time.monotonic(), b"", list(trickle)
    connection.settimeout(0.1)
    while time.monotonic() < began + 30:
        try:
            part = connection.recv(65536)
        except TimeoutError:
            if left:
                try:
                    connection.sendall(bytes([left.pop(0)]))
                except OSError:
                    continue  # what it said before is still to be heard
            continue
        except ConnectionError:
            part = b""
        if not part:
            return time.monotonic() - began, heard
        heard += part
    raise AssertionError("the connection is open still")


def head(method: str, path: str, name: str = "", length: int | None = None, **headers: str) -> bytes:
    """The beginning of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: server"]
    if name:
        lines.append("Authorization: Basic " + base64.b64encode(f"{name}:{secret_of(name)}".encode()).decode())
    if length is not None:
        lines.append(f"Content-Length: {length}")
    lines += [f"{key.replace('_', '-')}: {value}" for key, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def status_of(heard: bytes) -> int:
    return int(heard.split(b" ", 2)[1])


def alive(connection: socket.socket) -> bool:
    """Whether a request on this connection is answered."""
    heard = b""
    try:
        connection.sendall(head("GET", "/healthz"))
        while not heard.endswith(b'{"status":"alive"}'):
            part = connection.recv(65536)
            if not part:
                return False
            heard += part
    except ConnectionError:
        return False
    return True


def test_a_connection_that_asks_nothing_is_closed(server: Running) -> None:
    with connected(server) as connection:
        seconds, heard = until_closed(connection)
    assert IDLE * 0.9 <= seconds < IDLE + LATER
    assert heard == b""


def test_headers_that_come_byte_by_byte_are_not_waited_for(server: Running) -> None:
    with connected(server, b"GET /healthz HTTP/1.1\r\nHost: server\r\nX-Slow: ") as connection:
        seconds, heard = until_closed(connection, b"x" * 300)
    assert IDLE * 0.9 <= seconds < IDLE + LATER
    assert heard == b""


def test_a_connection_is_kept_while_it_asks_and_closed_when_it_asks_no_more(server: Running) -> None:
    with connected(server) as connection:
        for _ in range(6):
            time.sleep(IDLE / 4)
            assert alive(connection)
        seconds, heard = until_closed(connection)
    assert IDLE * 0.9 <= seconds < IDLE + LATER
    assert heard == b""


def test_requests_in_one_packet_are_all_answered(server: Running) -> None:
    with connected(server, head("GET", "/healthz") * 3) as connection:
        heard = until_closed(connection)[1]
    assert heard.count(b'{"status":"alive"}') == 3


def test_more_requests_in_one_packet_than_anybody_sends_end_the_connection(server: Running) -> None:
    with connected(server, head("GET", "/healthz") * 16) as connection:
        heard = until_closed(connection)[1]
    assert heard.count(b'{"status":"alive"}') == 16
    with connected(server, head("GET", "/healthz") * 5000) as connection:
        seconds, heard = until_closed(connection)
    assert seconds < LATER and heard.count(b'{"status":"alive"}') <= 16


def test_who_asks_twice_and_says_no_more_leaves_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    """The connection's end is found when the first answer has gone, in the midst of the second."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await asyncio.to_thread(time.sleep, 0.01)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    connections = Connections(10, idle_seconds=60, slow_seconds=SLOW)
    with running(application, connections) as address, closing(socket.create_connection(address, timeout=20)) as hasty:
        hasty.sendall((head("POST", "/", length=2) + b"{}") * 2)
        hasty.shutdown(socket.SHUT_WR)
        until_closed(hasty)
    assert caplog.messages == []


@pytest.mark.parametrize("path", [messages.CHECK_IN, messages.ENROL])
def test_a_message_that_comes_byte_by_byte_is_not_waited_for(server: Running, path: str) -> None:
    server.device("slow")
    with connected(server, head("POST", path, "slow", 300)) as connection:
        seconds, heard = until_closed(connection, b" " * 300)
    assert SLOW * 0.9 <= seconds < SLOW + LATER
    assert status_of(heard) == 408
    problem = json.loads(heard.partition(b"\r\n\r\n")[2])
    assert problem == {
        "reason": "slow",
        "message": "the body did not come within 2 seconds, stood still for 1.5, or another one of this caller took its"
        " place",
    }


def test_a_report_that_stands_still_is_not_waited_for(server: Running, make_report: Callable[..., bytes]) -> None:
    token, body = server.check_in("standing"), make_report()
    request = head("POST", messages.REPORT, "standing", len(body), **{"Pocketfed-Token": token})
    with connected(server, request, body[:-1]) as connection:
        seconds, heard = until_closed(connection)
    assert SLOW * 0.9 <= seconds < SLOW + LATER
    assert status_of(heard) == 408


def test_a_report_takes_the_place_of_an_earlier_one_whose_connection_broke(
    narrow: Running, make_report: Callable[..., bytes]
) -> None:
    token, body = narrow.check_in("moved"), make_report()
    request = head("POST", messages.REPORT, "moved", len(body), **{"Pocketfed-Token": token})
    with connected(narrow, request, body[:-1]) as earlier:
        time.sleep(0.3)  # it is being read
        assert narrow.report("moved", body, token)[1].reason == "not_started"  # heard to its end
        seconds, heard = until_closed(earlier)
    assert seconds < LATER < Quotas().slow_seconds
    assert status_of(heard) == 408


def test_what_is_refused_at_once_is_heard_although_the_body_goes_on(server: Running) -> None:
    answer = server.nobody.post(messages.REPORT, content=b"x" * 2_000_000)
    assert (answer.status_code, answer.json()["reason"]) == (401, "no_caller")
    with connected(server, head("POST", messages.REPORT, length=1000)) as connection:
        seconds, heard = until_closed(connection, b"x" * 300)  # not for as long as it likes
    assert status_of(heard) == 401
    assert IDLE * 0.9 <= seconds < IDLE + LATER


@pytest.mark.parametrize("path", [messages.CHECK_IN, messages.ENROL, messages.REPORT])
def test_zeros_in_front_of_a_length_change_nothing(server: Running, path: str) -> None:
    token = server.check_in("zeros")
    for content in (b"{}", b""):
        length = f"{len(content):0>5000}"
        request = head("POST", path, "zeros", Pocketfed_Token=token, Content_Length=length, Connection="close")
        with connected(server, request, content) as connection:
            assert status_of(until_closed(connection)[1]) == 400, "nothing but what the body is worth"


def test_headers_without_end_are_refused(server: Running) -> None:
    with connected(server, b"GET /healthz HTTP/1.1\r\nX-Long: ") as connection:
        sent = 0
        with pytest.raises(ConnectionError):
            while sent < 1 << 26:
                connection.sendall(b"x" * 65536)
                sent += 65536
        assert sent < 1 << 26


def test_where_there_are_too_many_connections_the_one_that_waited_longest_makes_room(narrow: Running) -> None:
    narrow.device("busy")
    body = json.dumps({"population": "tiny", "client": "busy", "runtime": "test"}).encode()
    with (
        connected(narrow, head("POST", messages.CHECK_IN, "busy", len(body)), body[:-1]) as busy,
        connected(narrow) as first,
    ):
        time.sleep(0.3)
        others = [socket.create_connection(busy.getpeername(), timeout=20) for _ in range(CONNECTIONS)]
        try:
            assert first.recv(1) == b""
            assert alive(others[-1])
            busy.sendall(body[-1:])  # it had a request, and was left alone
            assert status_of(busy.recv(65536)) == 200
        finally:
            for other in others:
                other.close()


def test_where_all_connections_are_busy_a_new_one_is_closed(narrow: Running) -> None:
    request = head("POST", messages.ENROL, length=10)
    busy = []
    url = httpx.URL(narrow.url)
    for _ in range(CONNECTIONS):
        busy.append(socket.create_connection((url.host, url.port or 80), timeout=20))
        busy[-1].sendall(request)
        time.sleep(0.05)
    time.sleep(0.3)
    try:
        with connected(narrow) as late:
            assert not alive(late)
        for connection in busy:
            connection.sendall(b"x" * 10)
            assert status_of(connection.recv(65536)) == 400
    finally:
        for connection in busy:
            connection.close()
    assert narrow.nobody.get("/healthz").status_code == 200


def test_a_reader_who_does_not_read_is_not_waited_for_and_costs_little() -> None:
    content = b"x" * (64 << 20)  # more than the kernel keeps for a reader
    connections = Connections(10, idle_seconds=60, slow_seconds=SLOW)
    buffered: list[int] = []
    with running(ContentResponse(content), connections) as address:
        with closing(http.client.HTTPConnection(*address, timeout=20)) as diligent:
            diligent.request("GET", "/")
            assert diligent.getresponse().read() == content
        with closing(socket.create_connection(address, timeout=20)) as lazy:
            lazy.sendall(head("GET", "/"))
            began = time.monotonic()
            while len(connections) == 0 and time.monotonic() < began + LATER:
                time.sleep(0.01)
            while len(connections) and time.monotonic() < began + 2 * LATER:
                buffered += [one.get_write_buffer_size() for one in list(connections._open.values())]
                time.sleep(0.01)
            assert not len(connections)
            assert time.monotonic() - began >= SLOW * 0.9
    assert 0 < max(buffered) < 1 << 20


@contextmanager
def running(application: Any, connections: Connections) -> Iterator[tuple[str, int]]:
    """The address of a uvicorn server in this process, with these connections."""
    protocol = bounded_protocol(connections)
    config = uvicorn.Config(application, http=protocol, log_config=None, lifespan="off", ws="none")
    uvicorn_server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            uvicorn_server.should_exit = True
            thread.join()


def test_room_is_made_for_connections_as_far_as_the_system_permits() -> None:
    context = multiprocessing.get_context("forkserver")  # the one of `start_server`
    with context.Pool(1) as pool:
        assert pool.apply(room, ((256, 8192), 5000)) == (5000, (5512, 8192), [])
        assert pool.apply(room, ((256, 4096), 5000)) == (
            3584,
            (4096, 4096),
            ["at most 3584 connections: this process may have no more than 4096 files open"],
        )
        assert pool.apply(room, ((4096, 4096), 100)) == (100, (4096, 4096), [])


def room(files: tuple[int, int], connections: int) -> tuple[int, tuple[int, int], list[str]]:
    """For a process of its own, since a limit can't be raised again: what it allows, the limits, and what is told."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("aggregation_server").addHandler(handler)
    resource.setrlimit(resource.RLIMIT_NOFILE, files)
    allowed = _room_for(connections)
    logging.getLogger("aggregation_server").removeHandler(handler)
    return allowed, resource.getrlimit(resource.RLIMIT_NOFILE), told
