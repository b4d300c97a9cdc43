"""A device behind a network that stands still in the middle of what it sends: it sends it again."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import httpx
import pytest

from aggregation_server.access.quotas import Quotas
from aggregation_server.rounds import RoundConfig
from device_runtime.errors import NetworkError
from device_runtime.messages import CheckIn
from device_runtime.server_client import ServerClient
from device_runtime.transport import Caller, RetryPolicy, Transport
from tests.aggregation_server.fleet import secret_of
from tests.aggregation_server.running import Running

SLOW = 1.0  # seconds for which the server waits for a body
ENDS_WITHIN = 30.0


class Network:
    """A way to a server that takes all of what is sent and brings only a part, on the first connections.

    Args:
        server: its URL.
        stalls: on how many connections.

    Attributes:
        statuses: of the answers that came back.
    """

    def __init__(self, server: str, stalls: int) -> None:
        self.statuses: list[int] = []
        self._server = httpx.URL(server)
        self._stalls = stalls
        self._listener = socket.create_server(("127.0.0.1", 0))

    @contextmanager
    def open(self) -> Iterator[str]:
        """Its URL."""
        with closing(self._listener):
            threading.Thread(target=self._serve, daemon=True).start()
            yield f"http://127.0.0.1:{self._listener.getsockname()[1]}"
            self._listener.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        with suppress(OSError):  # it was closed
            while True:
                device, _ = self._listener.accept()
                with device:
                    self._carry(device)

    def _carry(self, device: socket.socket) -> None:
        device.settimeout(ENDS_WITHIN)
        request = _message(device)
        if self._stalls > 0:
            self._stalls -= 1
            request = request[:-1]
        place = (self._server.host, self._server.port or 80)
        with socket.create_connection(place, ENDS_WITHIN) as server:
            server.sendall(request)
            answer = _message(server)
        self.statuses.append(int(answer.split(b" ", 2)[1]))
        device.sendall(answer)


def _message(connection: socket.socket) -> bytes:
    """A request or an answer, whose length is declared."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        assert byte, head
        head += byte
    (length,) = [
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
    ]
    body = b""
    while len(body) < length:
        part = connection.recv(length - len(body))
        assert part, head
        body += part
    return head + body


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Running]) -> Running:
    return start_server(RoundConfig(1, over_selection=1), quotas=Quotas(slow_seconds=SLOW, failure_rate=0))


@contextmanager
def device(server: Running, network: Network, name: str, attempts: int = 3) -> Iterator[ServerClient]:
    server.device(name)
    with network.open() as url:
        retry = RetryPolicy(attempts, first_wait=0.05)
        yield ServerClient(Transport(url, retry=retry, caller=Caller(name, secret_of(name))))


def test_a_body_that_came_too_slowly_is_sent_again(server: Running, make_report: Callable[..., bytes]) -> None:
    with device(server, slow := Network(server.url, 2), "a") as client:
        reply = client.check_in(CheckIn("tiny", "a", "test", ["training"]))
    assert (reply.decision, slow.statuses) == ("accept", [408, 408, 200])
    with device(server, slow := Network(server.url, 1), "a") as client:
        answer = client.report(reply.token, make_report(), patience=ENDS_WITHIN)
    assert (answer.verdict, slow.statuses) == ("accepted", [408, 200])
    (record,) = server.status_when("committed_rounds", 1)["history"]
    assert (record["clients"], record["counts"]["refused"]) == (1, {})


def test_a_network_that_goes_on_standing_still_is_told(server: Running) -> None:
    slow = Network(server.url, 9)
    with device(server, slow, "b", attempts=2) as client, pytest.raises(NetworkError) as caught:
        client.check_in(CheckIn("tiny", "b", "test", ["training"]))
    assert str(caught.value).endswith("/v1/check-in: the server failed with status 408 (2 attempts)")
    assert slow.statuses == [408, 408]
