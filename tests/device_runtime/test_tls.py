"""TLS with a real server: whose certificates are believed, and what is said where one does not verify."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device_runtime.cli import main
from device_runtime.errors import InputError, NetworkError, UntrustedError
from device_runtime.tls import tls_context
from device_runtime.transport import Caller, RetryPolicy, Transport
from tests.device_runtime.authority import Authority, serve_tls

Capture = pytest.CaptureFixture[str]
ENROLLED = (200, b'{"verdict": "enrolled"}')
COMPLETE = (200, b'{"decision": "complete"}')


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


def test_a_device_with_the_authority_s_certificate_enrols_and_takes_part(
    authority: Authority, examples_file: Callable[[int, int], Path], tmp_path: Path, capsys: Capture
) -> None:
    with serve_tls(authority.issue("127.0.0.1"), ENROLLED, COMPLETE) as server:
        here = ["--server", server.url, "--client", "a", "--cache", str(tmp_path), "--ca-file", str(authority.file)]
        assert main(["enrol", *here, "--code", "c"]) == 0
        assert main(["run", *here, "--population", "p", "--data", str(examples_file(5, 0))]) == 0
    assert capsys.readouterr() == (f"enrolled as 'a' at {server.url}\nthe task is complete\n", "")
    assert [path for path, *_ in server.requests] == ["/v1/enrol", "/v1/check-in"]
    caller = Caller("a", json.loads(server.requests[0][1])["secret"])
    assert server.requests[1][2]["Authorization"] == caller.authorization


def test_the_requests_of_a_session_share_a_handshake(authority: Authority) -> None:
    with serve_tls(authority.issue("127.0.0.1"), COMPLETE) as server:
        with Transport(server.url, tls=tls_context(authority.file)) as transport:
            for _ in range(3):
                transport.request("GET", "/")
        assert (server.handshakes, len(server.requests)) == (1, 3)


UNKNOWN = (
    "unable to get local issuer certificate; name the authority that issued it with --ca-file, if it is a private one"
)
OTHER = (
    "IP address mismatch, certificate is not valid for '127.0.0.1'; name the server in --server as its certificate does"
)
OLD = "certificate has expired; have it renewed, or set this device's clock"


@pytest.mark.parametrize(
    ("issued", "believed", "reason"),
    [
        (("127.0.0.1", -1, 1), "stranger", UNKNOWN),
        (("127.0.0.1", -1, 1), None, UNKNOWN),
        (("127.0.0.2", -1, 1), "authority", OTHER),
        (("fleet.example", -1, 1), "authority", OTHER),
        (("127.0.0.1", -3, -2), "authority", OLD),
    ],
    ids=["another authority", "not the system's", "another address", "another name", "expired"],
)
@pytest.mark.parametrize("command", ["enrol", "run"])
def test_a_certificate_that_does_not_verify(
    issued: tuple[str, int, int],
    believed: str | None,
    reason: str,
    command: str,
    authority: Authority,
    stranger: Authority,
    examples_file: Callable[[int, int], Path],
    tmp_path: Path,
    capsys: Capture,
) -> None:
    """One line at once, however many attempts there are, and the server has heard nothing."""
    files = {"authority": authority.file, "stranger": stranger.file}
    with serve_tls(authority.issue(*issued), ENROLLED) as server:
        options = ["--server", server.url, "--client", "a", "--cache", str(tmp_path)]
        options += [] if believed is None else ["--ca-file", str(files[believed])]
        options += ["--population", "p", "--data", str(examples_file(5, 0))] if command == "run" else []
        assert main([command, *options]) == 4
    expected = f"pocketfed-device: {server.url}: the server's certificate does not verify: {reason}\n"
    assert capsys.readouterr() == ("", expected)
    assert server.requests == []


def test_a_certificate_that_signs_itself(tmp_path: Path, authority: Authority) -> None:
    """As `openssl req -x509` makes one: it is not believed, unless it is named as its own authority."""
    path = tmp_path / "self.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=board", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", str(path)],
        check=True, capture_output=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    with serve_tls(path, (200, b"hello")) as server:
        for believed in (None, tls_context(authority.file)):
            with pytest.raises(UntrustedError) as caught:
                Transport(server.url, tls=believed).request("GET", "/")
            assert str(caught.value) == (
                f"{server.url}: the server's certificate does not verify: self-signed certificate; name the authority"
                " that issued it with --ca-file, if it is a private one"
            )
        assert server.requests == []
        assert Transport(server.url, tls=tls_context(path)).request("GET", "/").body == b"hello"


def test_a_server_that_speaks_no_tls_is_named_so(script: Any) -> None:
    url = script.url.replace("http://", "https://")
    with pytest.raises(NetworkError) as caught:
        Transport(url, retry=RetryPolicy(1)).request("GET", "/f")
    reason = "no TLS is spoken there: is the port right, or is it an http:// server?"
    assert str(caught.value) == f"{url}/f: {reason} (1 attempts)"


def test_a_certificate_of_the_future_is_a_matter_of_the_clock(authority: Authority) -> None:
    """A board that starts in 1970 believes it as soon as it knows the time: so this passes by itself."""
    with (
        serve_tls(authority.issue("127.0.0.1", 1, 2), (200, b"")) as server,
        pytest.raises(NetworkError) as caught,
    ):
        Transport(server.url, retry=RetryPolicy(5), tls=tls_context(authority.file)).request("GET", "/")
    assert str(caught.value) == (
        f"{server.url}: the server's certificate does not verify: certificate is not yet valid; set this device's clock"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "{path}: can't read the authorities' certificates: No such file or directory"),
        (b"", "{path}: holds no certificate; --ca-file names the authorities' certificates in PEM form"),
        (b"\x00\xff" * 99, "{path}: holds no certificate; --ca-file names the authorities' certificates in PEM form"),
        (
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "{path}: holds no certificate; --ca-file names the authorities' certificates in PEM form",
        ),
    ],
    ids=["missing", "empty", "noise", "damaged"],
)
@pytest.mark.parametrize("command", ["enrol", "run"])
def test_a_file_of_authorities_that_is_none(
    content: bytes | None,
    message: str,
    command: str,
    examples_file: Callable[[int, int], Path],
    tmp_path: Path,
    capsys: Capture,
) -> None:
    path = tmp_path / "authorities.pem"
    if content is not None:
        path.write_bytes(content)
    options = ["--server", "https://127.0.0.1:1", "--client", "a", "--cache", str(tmp_path), "--ca-file", str(path)]
    options += ["--population", "p", "--data", str(examples_file(5, 0))] if command == "run" else []
    assert main([command, *options]) == 2
    assert capsys.readouterr() == ("", f"pocketfed-device: {message.format(path=path)}\n")


def test_a_name_that_no_file_can_have() -> None:
    with pytest.raises(InputError, match=r"can't read the authorities' certificates: "):
        tls_context(Path("a\0b"))
