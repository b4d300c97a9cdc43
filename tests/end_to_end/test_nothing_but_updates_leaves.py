"""Raw data never leaves: all that a real device sends to a real server, through a proxy that records each byte."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from cli.fleet import command, server_process
from device_runtime.bundle import Bundle
from device_runtime.codec import decode, encoded_size
from device_runtime.examples import Examples, ExampleTypes
from device_runtime.interpreter import runtime_version
from device_runtime.local_store import LocalStore
from device_runtime.messages import CHECK_IN, CONFIGURATION, ENROL, REPORT, CheckIn
from device_runtime.transport import Caller

ROUNDS = 2
EXAMPLES = 12
METRICS = {"loss"}
CLIENT = "phone-0"
TEXT = b"dia=ry_=of_=who=eve=r_o=wns=thi=s_p=hon=e, ="
_PATH = re.compile(r"/v1/(bundles/[0-9a-f]{64}/[a-z]+\.[a-z0-9]+|(encoded-)?weights/[0-9a-f]{64})")


@dataclass
class Recording:
    """What went each way on each connection, in the order in which they were made."""

    url: str
    sent: list[bytearray] = field(default_factory=list)
    received: list[bytearray] = field(default_factory=list)


def address_of(url: str) -> tuple[str, int]:
    """Host and port."""
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    return parts.hostname, parts.port


@contextmanager
def recorded(url: str) -> Iterator[Recording]:
    """A proxy in front of the server at `url`: it passes on what comes, and writes it down."""
    address_of_server = address_of(url)
    threads: list[threading.Thread] = []

    def start(target: Callable[..., None], *arguments: object) -> None:
        threads.append(threading.Thread(target=target, args=arguments))
        threads[-1].start()

    def pass_on(source: socket.socket, target: socket.socket, record: bytearray) -> None:
        while data := source.recv(1 << 16):
            record += data
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    def serve(device: socket.socket, sent: bytearray, received: bytearray) -> None:
        with device, socket.create_connection(address_of_server) as server:
            back = threading.Thread(target=pass_on, args=(server, device, received))
            back.start()
            pass_on(device, server, sent)
            back.join()

    def accept() -> None:
        while True:
            device, _ = listener.accept()
            if over.is_set():
                device.close()
                return
            recording.sent.append(bytearray())
            recording.received.append(bytearray())
            start(serve, device, recording.sent[-1], recording.received[-1])

    over = threading.Event()
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        address = listener.getsockname()
        recording = Recording(f"http://127.0.0.1:{address[1]}")
        start(accept)
        try:
            yield recording
        finally:
            over.set()
            socket.create_connection(address).close()
            for thread in threads:
                thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


@dataclass(frozen=True)
class Request:
    """One request of the device, parsed to its last byte."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def parse(sent: bytes) -> list[Request]:
    """The requests of a connection, one after the other; nothing stands between them or after the last."""
    requests = []
    while sent:
        head, _, rest = sent.partition(b"\r\n\r\n")
        first, *lines = head.decode("ascii").split("\r\n")
        method, path, version = first.split(" ")
        assert version == "HTTP/1.1"
        pairs = [line.split(": ", 1) for line in lines]
        headers = {name.lower(): value for name, value in pairs}
        assert len(headers) == len(pairs)
        length = int(headers.get("content-length", 0))
        assert len(rest) >= length
        requests.append(Request(method, path, headers, rest[:length]))
        sent = rest[length:]
    return requests


@pytest.fixture
def examples() -> Examples:
    """Examples that would be recognised: no two neighbouring values are common, and one image is text.

    Of four characters, which are a float32, the last is ``=``: so the number is about 0.1.
    """
    x = np.random.default_rng(5).random((EXAMPLES, 8, 8, 1), np.float32)
    x[0] = np.frombuffer(TEXT.ljust(256, b"="), np.float32).reshape(8, 8, 1)
    return Examples(x, np.arange(EXAMPLES, dtype=np.int32) % 10)


def test_a_device_sends_its_name_tokens_and_updates_and_nothing_else(
    digits_bundle: Bundle, examples: Examples, tmp_path: Path
) -> None:
    manifest, store = digits_bundle.manifest, tmp_path / "examples.db"
    with LocalStore(store, ExampleTypes.of(manifest)) as made:
        made.add(examples.x, examples.y)
    serving = [
        "--goal",
        "1",
        "--over-selection",
        "1",
        "--retry-seconds",
        "0.1",
        "--rounds",
        str(ROUNDS),
        "--codec",
        "q8",
    ]
    database = ["--db", f"sqlite:///{tmp_path / 'server.db'}", "--spool", str(tmp_path / "spool")]
    database += ["--keys", str(tmp_path)]
    arguments = [str(digits_bundle.path), *database, *serving, "--batch-size", "5"]
    with server_process(arguments, tmp_path / "server.log") as url, recorded(url) as recording:
        run = [
            "run",
            "--server",
            recording.url,
            "--population",
            manifest.name,
            "--client",
            CLIENT,
            "--data",
            str(store),
        ]
        device = subprocess.run(
            [command("pocketfed-device"), *run, "--cache", str(tmp_path / "cache")],
            env={**os.environ, "HOME": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert device.returncode == 0, device.stderr
    assert device.stdout.count(": reported (") == ROUNDS

    requests = [request for sent in recording.sent for request in parse(bytes(sent))]
    enrolments = [json.loads(request.body) for request in requests if request.path == ENROL]
    (secret,) = {told["secret"] for told in enrolments}
    assert enrolments == [{"code": "", "client": CLIENT, "secret": secret}]
    assert len(secret) == 43  # 32 random bytes
    answers = b"".join(map(bytes, recording.received))
    tokens = set(re.findall(r'"token":\s*"([^"]+)"', answers.decode("latin-1")))
    versions = set(re.findall(r'"weights":\s*"([0-9a-f]{64})"', answers.decode("latin-1")))
    reports = []
    for request in requests:
        headers = dict(request.headers)
        assert headers.pop("host") == urlsplit(recording.url).netloc
        assert headers.pop("accept-encoding") == "identity"
        assert headers.pop("content-length", "0") == str(len(request.body))
        kind, token = headers.pop("content-type", ""), headers.pop("pocketfed-token", "")
        assert headers.pop("authorization", "") == (
            "" if request.path == ENROL else Caller(CLIENT, secret).authorization
        )
        assert re.fullmatch(r"(bytes=\d+-)?", headers.pop("range", ""))  # of a download that goes on where it broke
        assert headers == {}
        assert token in tokens | {""}
        call = request.method, request.path
        if call == ("POST", CHECK_IN):
            told = json.loads(request.body)
            assert kind == "application/json"
            assert request.body == json.dumps(told).encode()
            assert set(told) == {each.name for each in fields(CheckIn)}
            known = {"population": manifest.name, "client": CLIENT, "runtime": runtime_version()}
            assert {name: told[name] for name in known} == known
            assert told["tasks"] == ["training"]
        elif call == ("POST", ENROL):
            assert kind == "application/json"
            assert request.body == json.dumps(enrolments[0]).encode()
        elif call == ("POST", REPORT):
            assert kind == "application/octet-stream"
            reports.append(request.body)
        else:
            assert request.method == "GET"
            path, _, holds = request.path.partition("?holds=")
            assert path == CONFIGURATION or _PATH.fullmatch(request.path)
            assert holds in versions | {""}  # weights that the server itself has named
            assert (request.body, kind) == (b"", "")

    assert len(reports) == ROUNDS
    for number, report in enumerate(reports, 1):
        assert len(report) == encoded_size(manifest.tensors, "q8", sorted(METRICS))
        update = decode(report, manifest.tensors, manifest.model_id)
        assert (update.weight, update.round_number, set(update.metrics)) == (EXAMPLES, number, METRICS)

    everything = b"\n".join(map(bytes, recording.sent))
    assert len(everything) > ROUNDS * manifest.parameters
    for row in (*examples.x, examples.y[1:9]):  # zeros would be in any header
        data = row.tobytes()
        for start in range(0, len(data) - 8, 4):  # two values in a row
            assert data[start : start + 8] not in everything
    for value in examples.x[1:].reshape(-1):
        for text in (repr(float(value)), f"{value:.6g}", f"{value:.6f}"):
            assert text.encode() not in everything
    assert TEXT[:8] not in everything


def test_the_recording_would_show_an_example(examples: Examples) -> None:
    """The proxy of the test above keeps what is sent, so that an example in it would have been found."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with recorded(url) as recording, socket.create_connection(address_of(recording.url)) as device:
            upstream, _ = server.accept()
            device.sendall(examples.x.tobytes())
            device.shutdown(socket.SHUT_WR)
            with upstream:
                while upstream.recv(1 << 16):
                    pass
    assert b"".join(map(bytes, recording.sent)) == examples.x.tobytes()
