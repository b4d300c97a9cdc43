"""TLS: who is spoken to, with what, and what is said of files that can't be used."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from aggregation_server.access.quotas import Quotas
from aggregation_server.rounds import RoundConfig
from aggregation_server.server import Listening, serve
from aggregation_server.task import Task
from device_runtime.bundle import Bundle
from device_runtime.cli import main
from device_runtime.errors import InputError
from tests.aggregation_server.running import KEYS, Running

SLOW = 1.5


@dataclass(frozen=True)
class Pair:
    """A certificate that vouches for itself, and its key."""

    certificate: Path
    key: Path


def make_pair(folder: Path, encryption: KeySerializationEncryption | None = None) -> Pair:
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    pair = Pair(folder / "server.pem", folder / "server.key")
    pair.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
    pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))
    return pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("tls") / "pair")


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Running], pair: Pair) -> Running:
    listening = Listening(certificate=pair.certificate, private_key=pair.key)
    return start_server(RoundConfig(100), listening=listening, anybody=False, quotas=Quotas(slow_seconds=SLOW))


def address(server: Running) -> tuple[str, int]:
    url = httpx.URL(server.url)
    return url.host, url.port or 0


def handshake(server: Running, pair: Pair, lowest: ssl.TLSVersion, highest: ssl.TLSVersion) -> str | None:
    """The version that client and server agree on."""
    context = ssl.create_default_context(cafile=pair.certificate)
    context.set_ciphers("ALL:@SECLEVEL=0")  # so that it is the server who refuses
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # versions that are refused are deprecated, too
        context.minimum_version, context.maximum_version = lowest, highest
    with (
        closing(socket.create_connection(address(server), timeout=20)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        return secure.version()


def test_a_server_with_a_certificate_speaks_tls_alone(server: Running) -> None:
    assert server.url.startswith("https://127.0.0.1:")
    assert server.status()["phase"] == "selection"
    with closing(socket.create_connection(address(server), timeout=20)) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: server\r\n\r\n")
        assert b"alive" not in plain.recv(65536)
    with pytest.raises(httpx.ConnectError, match="self-signed certificate"):
        httpx.get(server.url + "/healthz", trust_env=False)


def test_tls_is_at_least_of_version_1_2(server: Running, pair: Pair) -> None:
    new, middle = ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2
    assert handshake(server, pair, middle, new) == "TLSv1.3"
    assert handshake(server, pair, middle, middle) == "TLSv1.2"
    with pytest.raises(ssl.SSLError, match=r"EOF occurred|alert protocol version"):
        handshake(server, pair, ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1)


def test_a_handshake_that_does_not_come_is_not_waited_for(server: Running) -> None:
    with closing(socket.create_connection(address(server), timeout=20)) as silent:
        began = time.monotonic()
        assert silent.recv(1) == b""
        assert SLOW * 0.9 <= time.monotonic() - began < SLOW + 8


def test_a_device_enrols_over_tls_and_tells_its_secret_to_nobody_else(
    server: Running, pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = server.operator.post("/v1/enrolment-codes", json={"count": 1}).json()["codes"][0]
    impostor = make_pair(tmp_path / "impostor")

    def enrol(authorities: Path) -> int:
        place = ["--state", str(tmp_path / "state"), "--cache", str(tmp_path / "cache")]
        return main(
            [
                "enrol",
                "--server",
                server.url,
                "--client",
                "phone",
                "--code",
                code,
                "--ca-file",
                str(authorities),
                *place,
            ]
        )

    def names() -> list[str]:
        return [device["name"] for device in server.viewer.get("/v1/devices").json()]

    assert enrol(impostor.certificate) != 0
    assert "the server's certificate does not verify: self-signed certificate" in capsys.readouterr().err
    assert names() == []
    assert enrol(pair.certificate) == 0
    assert names() == ["phone"]


@pytest.mark.parametrize("only", ["certificate", "private_key"])
def test_half_of_a_pair_is_refused(pair: Pair, only: str) -> None:
    with pytest.raises(InputError) as caught:
        Listening(**{only: pair.certificate})  # type: ignore[arg-type]
    assert str(caught.value) == "TLS needs a certificate and its key: give both --tls-cert and --tls-key"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "fleet.example", "127.0.0.1.example"])
def test_plain_http_is_not_spoken_where_others_hear_it(host: str, pair: Pair) -> None:
    with pytest.raises(InputError) as caught:
        Listening(host)
    assert str(caught.value) == (
        f"{host}: secrets and updates would go over the network as they are; give --tls-cert and --tls-key, or"
        " --insecure where something in front of this server speaks TLS"
    )
    assert Listening(host, insecure=True).host == Listening(host, 0, pair.certificate, pair.key).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_plain_http_is_spoken_where_only_this_machine_hears_it(host: str) -> None:
    assert Listening(host).host == host


def refusal(bundle: Bundle, folder: Path, listening: Listening, anybody: bool = False) -> str:
    """What a server says that does not start; it leaves nothing behind."""
    store = folder / "server.db"
    with pytest.raises(InputError) as caught:
        serve(
            bundle,
            Task(RoundConfig(2)),
            f"sqlite:///{store}",
            folder / "spool",
            KEYS,
            listening,
            lambda _: None,
            anybody,
        )
    assert not store.exists()
    assert not (folder / "spool").exists()
    return str(caught.value)


def test_open_enrolment_is_for_this_machine_alone(bundle: Bundle, tmp_path: Path) -> None:
    assert refusal(bundle, tmp_path, Listening("0.0.0.0", insecure=True), anybody=True) == (
        "0.0.0.0: with --open-enrolment everybody could take part; it is for 127.0.0.1 alone"
    )


def test_files_that_can_not_be_used_are_named(bundle: Bundle, pair: Pair, tmp_path: Path) -> None:
    def said(certificate: Path, key: Path) -> str:
        return refusal(bundle, tmp_path, Listening(certificate=certificate, private_key=key))

    missing = tmp_path / "missing.pem"
    for certificate, key in ((missing, pair.key), (pair.certificate, missing)):
        assert said(certificate, key) == f"{missing}: no such file; --tls-cert and --tls-key name PEM files"
    other = make_pair(tmp_path / "other")
    wrong = said(pair.certificate, other.key)
    assert wrong == f"{pair.certificate}: can't be used with {other.key}: KEY_VALUES_MISMATCH"
    text = tmp_path / "notes.txt"
    text.write_text("no PEM file\n")
    assert said(text, pair.key).startswith(f"{text}: can't be used with {pair.key}: ")
    assert said(pair.certificate, text).startswith(f"{pair.certificate}: can't be used with {text}: ")
    locked = make_pair(tmp_path / "locked", BestAvailableEncryption(b"a password"))
    assert said(locked.certificate, locked.key) == (
        f"{locked.key}: the key is encrypted; give one that is not, which others can't read"
    )
