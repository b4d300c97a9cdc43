"""nginx and Caddy with our configurations: sound by their own check, and a device's round through them, with TLS."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support import expected_conditions
from selenium.webdriver.support.wait import WebDriverWait

from cli.fleet import command, server_process
from cli.main import main
from device_runtime.bundle import Bundle
from device_runtime.examples import Examples
from tests.browser import headless_chromium, requested
from tests.device_runtime.authority import Authority
from tff_sim.child_process import dies_with_parent

DEPLOY = Path(__file__).parents[2] / "deploy"
HOST = "127.0.0.1"
OTHER = "127.0.0.2"  # another address of this machine: somebody else, to the proxy
STARTS_WITHIN = 30.0

needs_more_addresses = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")


@dataclass(frozen=True)
class Proxy:
    """A program that speaks TLS, and how it is set up and started.

    Attributes:
        name: of the program, and its Debian package.
        check: arguments that have it check a configuration and end.
        start: arguments that have it run in the foreground.
        patience: what our configuration says of how long a body may take.
    """

    name: str
    package: str
    check: Sequence[str]
    start: Sequence[str]
    patience: str

    @property
    def program(self) -> str | None:
        return shutil.which(self.name, path=f"{os.environ['PATH']}:/usr/sbin")

    def run(self, arguments: Sequence[str], folder: Path) -> list[str]:
        assert self.program is not None
        return [self.program, *(argument.replace("FOLDER", str(folder)) for argument in arguments)]

    def configure(self, folder: Path, certificate: Path, listen: int, server: str, other: str | None = None) -> None:
        """Write our configuration for a port and a certificate of this test, and for its server.

        Args:
            folder: to write it to.
            certificate: PEM file, with its key.
            listen: the port.
            server: its address, HOST:PORT.
            other: that of the server that has a part of the proxy's address, as our comments show it; None for none.
        """
        if self.name == "caddy":
            text = _with_another_fleet((DEPLOY / "caddy" / "Caddyfile").read_text(), other)
            name = f"https://{HOST}:{listen}"
            text = _once(text, "fleet.example {", f"{name} {{\n\tbind {HOST}\n\ttls {certificate} {certificate}")
            text = _once(text, "auto_https disable_redirects", "auto_https off\n\tadmin off")
            (folder / "Caddyfile").write_text(_once(text, f"{HOST}:8080", server))
            return
        text = _with_another_fleet((DEPLOY / "nginx" / "pocketfed.conf").read_text(), other)
        text = _once(text, "listen 443 ssl;", f"listen {HOST}:{listen} ssl;")
        text = _once(text, "listen [::]:443 ssl;", "")
        text = _once(text, "server_name fleet.example;", f"server_name {HOST};")
        text = _once(text, "/etc/letsencrypt/live/fleet.example/fullchain.pem", str(certificate))
        text = _once(text, "/etc/letsencrypt/live/fleet.example/privkey.pem", str(certificate))
        (folder / "pocketfed.conf").write_text(_once(text, f"{HOST}:8080", server))
        places = [f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
        http = ["access_log off;", *places, f"include {folder / 'pocketfed.conf'};"]
        (folder / "nginx.conf").write_text(
            f"daemon off; master_process off; pid {folder / 'pid'}; error_log stderr;\n"
            "events { worker_connections 256; }\n"
            f"http {{ {' '.join(http)} }}\n"
        )


PROXIES = (
    Proxy(
        "nginx", "nginx-light",
        ["-t", "-p", "FOLDER", "-c", "FOLDER/nginx.conf"],
        ["-p", "FOLDER", "-c", "FOLDER/nginx.conf"],
        "client_body_timeout 20s",
    ),
    Proxy(
        "caddy", "caddy",
        ["validate", "--adapter", "caddyfile", "--config", "FOLDER/Caddyfile"],
        ["run", "--adapter", "caddyfile", "--config", "FOLDER/Caddyfile"],
        "read_body 10m",
    ),
)  # fmt: skip


@pytest.fixture(scope="module", params=PROXIES, ids=lambda proxy: proxy.name)
def proxy(request: pytest.FixtureRequest) -> Proxy:
    found: Proxy = request.param
    if found.program is None:
        pytest.skip(f"{found.name} is not installed (Debian's package: {found.package})")
    return found


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def _once(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def _with_another_fleet(text: str, server: str | None) -> str:
    """A configuration in which the comment below "Another fleet's server" is none, if there is one."""
    if server is None:
        return text
    before, comment = text.split("# Another fleet's server")
    about, *lines = comment.split("\n")
    lines = [re.sub(r"^(\s+)# ", r"\1", line) for line in lines]
    return _once(f"{before}# {about}\n" + "\n".join(lines), f"{HOST}:8081", server)


def _check(proxy: Proxy, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        proxy.run(proxy.check, folder),
        env=_environment(folder),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}


@contextmanager
def _running(proxy: Proxy, folder: Path, port: int) -> Iterator[None]:
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            dies_with_parent(proxy.run(proxy.start, folder)),
            env=_environment(folder), cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            until = time.monotonic() + STARTS_WITHIN
            while True:
                try:
                    socket.create_connection((HOST, port)).close()
                    break
                except ConnectionRefusedError:
                    assert process.poll() is None and time.monotonic() < until, (folder / "log").read_text()
                    time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(30)


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as taken:
        return int(taken.getsockname()[1])


def test_the_configuration_is_sound_and_a_wrong_one_is_found(
    proxy: Proxy, authority: Authority, tmp_path: Path
) -> None:
    proxy.configure(tmp_path, authority.issue(HOST), 8443, f"{HOST}:8080")
    checked = _check(proxy, tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "[warn]" not in checked.stderr
    path = tmp_path / ("Caddyfile" if proxy.name == "caddy" else "pocketfed.conf")
    path.write_text(path.read_text().replace("keepalive ", "keepalife "))
    checked = _check(proxy, tmp_path)
    assert checked.returncode == 1 and "keepalife" in checked.stderr


def test_a_body_that_never_comes_is_not_waited_for_without_end(
    proxy: Proxy, authority: Authority, tmp_path: Path
) -> None:
    """With a second in the place of what our configuration says; and a server that never hears of it all."""
    port, certificate = _free_port(), authority.issue(HOST)
    with socket.create_server((HOST, 0)) as server:
        proxy.configure(tmp_path, certificate, port, f"{HOST}:{server.getsockname()[1]}")
        path = tmp_path / ("Caddyfile" if proxy.name == "caddy" else "pocketfed.conf")
        path.write_text(_once(path.read_text(), proxy.patience, f"{proxy.patience.split()[0]} 1s"))
        tls = ssl.create_default_context(cafile=authority.file)
        with (
            _running(proxy, tmp_path, port),
            socket.create_connection((HOST, port), timeout=20) as plain,
            tls.wrap_socket(plain, server_hostname=HOST) as connection,
        ):
            connection.sendall(b"POST /v1/enrol HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nslow")
            while connection.recv(65536):  # an error, or nothing, and the connection's end
                pass


@needs_more_addresses
def test_a_device_s_round_through_it(
    proxy: Proxy,
    authority: Authority,
    digits_bundle: Bundle,
    digits_examples: Callable[[int, int], Examples],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    examples = digits_examples(20, 0)
    np.savez(tmp_path / "examples.npz", x=examples.x, y=examples.y)
    places = [
        "--db",
        f"sqlite:///{tmp_path / 'server.db'}",
        "--spool",
        str(tmp_path / "spool"),
        "--keys",
        str(tmp_path),
    ]
    limits = ["--trusted-proxy", HOST, "--failure-rate", "0.1"]  # one refusal, then none for ten seconds
    rounds = ["--goal", "1", "--over-selection", "1", "--rounds", "1"]
    port = _free_port()
    url = f"https://{HOST}:{port}"
    with server_process([str(digits_bundle.path), *places, *limits, *rounds], tmp_path / "server.log") as server:
        proxy.configure(tmp_path, authority.issue(HOST), port, urlsplit(server).netloc)
        with _running(proxy, tmp_path, port):
            people = ["--server", url, "--keys", str(tmp_path), "--ca-file", str(authority.file)]
            assert main(["enrol", *people]) == 0
            code = capsys.readouterr().out.strip()
            here = ["--server", url, "--client", "board-7", "--ca-file", authority.file, "--cache", tmp_path / "cache"]
            device = [*map(str, here)]
            enrolled = _device("enrol", *device, "--code", code)
            assert (enrolled.returncode, enrolled.stderr) == (0, "")
            trained = _device(
                "run", *device, "--population", digits_bundle.manifest.name, "--data", str(tmp_path / "examples.npz"),
                "--root", str(tmp_path / "root"),
            )  # fmt: skip
            assert (trained.returncode, trained.stderr) == (0, "")
            assert main(["devices", *people, "--json"]) == 0
            assert '"reports": 1' in capsys.readouterr().out
            assert main(["rounds", *people, "--json"]) == 0
            assert '"committed_rounds": 1' in capsys.readouterr().out
            _limits_go_by_the_address_that_the_proxy_sees(url, authority)
    assert "--trusted-proxy" not in (tmp_path / "server.log").read_text()  # the warning where none is named


def test_a_fleet_that_has_a_part_of_an_address(
    proxy: Proxy, authority: Authority, digits_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its devices, its people and their page; nobody is there at the address itself."""
    places = ["--db", f"sqlite:///{tmp_path / 'server.db'}", "--spool", str(tmp_path / "spool")]
    port = _free_port()
    url = f"https://{HOST}:{port}/keyboard"
    command = [str(digits_bundle.path), *places, "--keys", str(tmp_path), "--trusted-proxy", HOST]
    with server_process(command, tmp_path / "server.log") as server:
        proxy.configure(tmp_path, authority.issue(HOST), port, f"{HOST}:{_free_port()}", urlsplit(server).netloc)
        with _running(proxy, tmp_path, port):
            people = ["--keys", str(tmp_path), "--ca-file", str(authority.file)]
            assert main(["enrol", "--server", f"{url}/", *people]) == 0
            code = capsys.readouterr().out.strip()
            device = ["--server", url, "--client", "board-7", "--ca-file", str(authority.file)]
            enrolled = _device("enrol", *device, "--code", code, "--cache", str(tmp_path / "cache"))
            assert (enrolled.returncode, enrolled.stderr) == (0, "")
            assert enrolled.stdout == f"enrolled as 'board-7' at {url}\n"
            assert main(["rounds", "--server", url.removesuffix("/keyboard"), *people]) == 3
            assert "the server failed with status 502" in capsys.readouterr().err
            key = (tmp_path / "viewer.key").read_text().strip()
            with headless_chromium("ignore-certificate-errors") as browser:
                browser.get(f"https://viewer:{key}@{HOST}:{port}/keyboard/")
                live = expected_conditions.text_to_be_present_in_element((By.ID, "connection"), "live")
                WebDriverWait(browser, 30).until(live)
                assert browser.find_element(By.ID, "population").text == digits_bundle.manifest.name
                asked = requested(browser)
                assert f"{url}/v1/status?history=5" in asked
                assert all(urlsplit(one).path.startswith("/keyboard/") for one in asked)


def _limits_go_by_the_address_that_the_proxy_sees(url: str, authority: Authority) -> None:
    context = ssl.create_default_context(cafile=authority.file)

    def ask(address: str, forged: str) -> int:
        transport = httpx.HTTPTransport(verify=context, local_address=address)
        with httpx.Client(transport=transport, trust_env=False, timeout=30) as stranger:
            return stranger.get(
                f"{url}/v1/status", auth=("operator", "x" * 43), headers={"X-Forwarded-For": forged}
            ).status_code

    assert [ask(OTHER, f"192.0.2.{number}") for number in range(2)] == [401, 429]  # whoever it says it is
    assert ask(HOST, OTHER) == 401  # somebody else is not kept out


def _device(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = [command("pocketfed-device"), *arguments]
    return subprocess.run(program, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, check=False)
