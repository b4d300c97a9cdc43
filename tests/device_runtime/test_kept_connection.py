"""One connection for the requests of a session: kept while it is good, and never a reason to send something twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from device_runtime.errors import NetworkError
from device_runtime.server_client import ServerClient
from device_runtime.tensors import sha256
from device_runtime.transport import RetryPolicy, Transport


class Keeping:
    """An HTTP/1.1 server that keeps connections.

    Attributes:
        url: of it.
        requests: connection (a number) and path of each.
        close: after an answer, whether it hangs up without having said so.
    """

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[int, str]] = []
        self.close = False
        self.status = 200
        self.ended = threading.Event()


@contextmanager
def keeping() -> Iterator[Keeping]:
    state, connections = Keeping(), iter(range(1, 100))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            self.number = next(connections)

        def do_GET(self) -> None:
            state.requests.append((self.number, self.path))
            self.send_response(state.status)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"body")
            self.close_connection = state.close

        def finish(self) -> None:
            super().finish()
            self.connection.close()
            state.ended.set()

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[Keeping]:
    with keeping() as state:
        yield state


def numbers(server: Keeping) -> list[int]:
    return [number for number, _ in server.requests]


def test_requests_share_a_connection_within_the_context(server: Keeping, tmp_path: Any) -> None:
    with Transport(server.url) as transport:
        client = ServerClient(transport)
        for _ in range(3):
            assert transport.request("GET", "/").body == b"body"
        client.fetch("/f", sha256(b"body"), 4, tmp_path / "f")
    assert numbers(server) == [1, 1, 1, 1]
    assert server.ended.wait(10)  # the context's end is the connection's


def test_without_the_context_each_has_its_own(server: Keeping) -> None:
    transport = Transport(server.url)
    for _ in range(2):
        transport.request("GET", "/")
    assert numbers(server) == [1, 2]


def test_a_connection_that_the_server_has_ended_is_not_used(server: Keeping) -> None:
    """One attempt is all there is, so that a request that was lost would be an error."""
    with Transport(server.url, retry=RetryPolicy(1)) as transport:
        for _ in range(3):
            server.close = True
            server.ended.clear()
            assert transport.request("GET", "/").body == b"body"
            assert server.ended.wait(10)
    assert numbers(server) == [1, 2, 3]


def test_a_connection_that_was_idle_for_long_is_not_used(server: Keeping) -> None:
    now = [0.0]
    with Transport(server.url, clock=lambda: now[0]) as transport:
        for seconds in (0.0, 3.9, 3.9, 4.1):
            now[0] += seconds
            transport.request("GET", "/")
    assert numbers(server) == [1, 1, 1, 2]


def test_an_answer_that_was_not_read_to_its_end_costs_the_connection(server: Keeping) -> None:
    with Transport(server.url, retry=RetryPolicy(1)) as transport:
        with pytest.raises(NetworkError, match="the answer is longer than 2 bytes"):
            transport.request("GET", "/", limit=2)
        server.status = 503
        with pytest.raises(NetworkError, match="the server failed with status 503"):
            transport.request("GET", "/")
        server.status = 200
        assert transport.request("GET", "/").body == b"body"
    assert numbers(server) == [1, 2, 3]


def test_a_server_that_closes_each_connection(script: Any) -> None:
    """HTTP/1.0, as some proxies speak it."""
    script.answers = [(200, b"body")]
    with Transport(script.url, retry=RetryPolicy(1)) as transport:
        for _ in range(2):
            assert transport.request("GET", "/").body == b"body"
