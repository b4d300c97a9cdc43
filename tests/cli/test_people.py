"""What people tell a running server from the command line, and what they are told where that can't be."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from aggregation_server.aggregation.robust import AGGREGATORS
from aggregation_server.aggregation.server_optimizer import SERVER_OPTIMIZERS
from aggregation_server.web import people as web
from cli import people, serve_options
from cli.fleet import server_process
from cli.main import main
from device_runtime import messages
from device_runtime.bundle import Bundle
from device_runtime.weights import load_weights
from tests.device_runtime.authority import Authority
from tests.serving import QUICK, RUNTIME, SECRET, take_part

Capture = pytest.CaptureFixture[str]
CODE = re.compile(r"[\w-]{24}")
COMMANDS = ("rounds", "devices", "pause", "resume", "rollback", "release", "enrol", "revoke")


@dataclass(frozen=True)
class Served:
    """A server process: its URL, and the folder with its keys."""

    url: str
    keys: Path

    def __call__(self, command: str, *arguments: object) -> int:
        """Run a command against it; the exit code."""
        return main([command, "--server", self.url, "--keys", str(self.keys), *map(str, arguments)])


@pytest.fixture(scope="module")
def serve(digits_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`serve(arguments)`: a context with a server whose rounds are of one device."""

    def start(*arguments: str) -> Any:
        keys = tmp_path_factory.mktemp("server")
        places = ["--db", f"sqlite:///{keys / 'server.db'}", "--spool", str(keys / "spool"), "--keys", str(keys)]
        return server_process([str(digits_bundle.path), *places, *QUICK, *arguments], keys / "log"), keys

    return start


@pytest.fixture(scope="module")
def server(serve: Callable[..., Any]) -> Iterator[Served]:
    """The server of most tests; each leaves it without an open round and not paused."""
    process, keys = serve("--keep-versions", "2")
    with process as url:
        yield Served(url, keys)


@pytest.fixture(scope="module")
def train(server: Served, digits_bundle: Bundle) -> Callable[..., str]:
    """`train(name, value)`: see `take_part`."""
    return partial(take_part, server.url, digits_bundle, server.keys)


def _one_line(capture: Capture) -> str:
    output = capture.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    return line.removeprefix("pocketfed: ")


def _json(capture: Capture) -> Any:
    output = capture.readouterr()
    assert output.err == ""
    return json.loads(output.out)


def test_paths_and_names_are_those_of_the_packages() -> None:
    for name in ("ROUNDS", "DEVICES", "PAUSE", "RESUME", "ROLLBACK", "RELEASE", "CODES", "REVOKE"):
        assert getattr(people, name) == getattr(web, name)
    assert vars(people)["STATUS"] == messages.STATUS
    assert tuple(SERVER_OPTIMIZERS) == serve_options.SERVER_OPTIMIZERS
    assert serve_options.AGGREGATORS == AGGREGATORS


def test_rounds_from_the_first_to_a_version_for_users(
    server: Served,
    train: Callable[..., str],
    digits_bundle: Bundle,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert server("rounds") == 0
    assert capsys.readouterr().out.splitlines()[-1] == ("round 1 (training): selection, 0 of 1 devices, 0 of 1 reports")
    first, second = train(), train(value=0.125)
    weights = tmp_path / "released.safetensors"
    assert server("release", 1, "--out", weights) == 0
    assert capsys.readouterr().out == f"version 1 is released: {first}\nwrote {weights}\n"
    tensors = digits_bundle.manifest.tensors
    before = digits_bundle.initial_weights()
    for start, after in zip(before, load_weights(weights.read_bytes(), tensors, "released"), strict=True):
        np.testing.assert_allclose(after, start + np.float32(0.25), rtol=0, atol=1e-6)

    assert server("rollback", 1) == 0
    assert capsys.readouterr().out == f"version 3 has the weights of version 1: {first}\n"
    assert server("rounds", "--json") == 0
    told = _json(capsys)
    assert told["weights"] == first and told["released"] == 1 and told["committed_rounds"] == 3
    assert [(one["number"], one["task"], one["weights"]) for one in told["history"]] == [
        (1, "training", first), (2, "training", second), (3, "rollback", first),
    ]  # fmt: skip
    assert server("rounds", "--last", 2) == 0
    table = capsys.readouterr().out
    assert "rollback" in table and "committed to 1" in table and "0.1250" in table
    assert "(released)" not in table  # it is the third from last
    monkeypatch.setenv("COLUMNS", "80")
    assert server("rounds") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "…" not in "".join(lines) and max(map(len, lines)) <= 80
    row = r"1 +training +committed +\d\d-\d\d \d\d:\d\d +\d+\.\d +1 of 1 +0\.2500 *"
    assert re.fullmatch(row, lines[1]) and lines[2].strip() == "(released)"


def test_pause_and_resume(server: Served, capsys: Capture) -> None:
    assert server("pause") == 0
    assert capsys.readouterr().out == "paused: 'pocketfed resume' goes on\n"
    assert server("rounds") == 0
    assert re.fullmatch(r"paused; the latest version is \d+", capsys.readouterr().out.splitlines()[-1])
    assert server("resume") == 0
    assert capsys.readouterr().out == "rounds go on\n"
    assert server("rounds", "--json") == 0
    assert _json(capsys)["phase"] == "selection"


def test_devices_come_with_a_code_and_go(
    server: Served, train: Callable[..., str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(people, "_PAGE", 2)  # so that there are several
    assert server("enrol", "--count", 3, "--hours", 0.5) == 0
    codes = capsys.readouterr().out.splitlines()
    assert len(set(codes)) == 3 and all(CODE.fullmatch(code) for code in codes)
    assert server("enrol", "--json") == 0
    codes += _json(capsys)["codes"]

    def enrol(code: str, name: str, secret: str = SECRET) -> int:
        body = {"code": code, "client": name, "secret": secret}
        return httpx.post(f"{server.url}{messages.ENROL}", json=body, trust_env=False, timeout=30).status_code

    assert [enrol(code, f"board-{number}") for number, code in enumerate(codes)] == [200] * 4
    assert enrol(codes[0], "board-4") == 403  # used
    train("phone-1")
    assert server("revoke", "board-0") == 0
    assert capsys.readouterr().out == "board-0 is revoked\n"
    assert server("devices", "--json") == 0
    devices = {device["name"]: device for device in _json(capsys)["devices"]}
    assert list(devices) == sorted(devices) and {"board-0", "board-1", "board-2", "board-3", "phone-1"} <= set(devices)
    assert devices["board-0"]["state"] == "revoked" and devices["board-3"]["state"] == "enrolled"
    assert (devices["phone-1"]["state"], devices["phone-1"]["reports"]) == ("active", 1)
    assert server("devices") == 0
    rows = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    assert RUNTIME in rows["phone-1"]  # it is no markup
    assert "active" in rows["phone-1"] and "revoked" in rows["board-0"]

    assert server("enrol", "--client", "board-0") == 0  # it comes back, with another secret
    (code,) = capsys.readouterr().out.splitlines()
    assert enrol(code, "board-9") == 403
    assert enrol(code, "board-0", "t" * 43) == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["rollback", "99"],
            r"version 99: not there to go back to; the last 2 versions up to \d+, the first and the released one are"
            " kept",
        ),
        (
            ["release", str(10**30)],
            rf"version {10**30}: not there to be released; the last 2 versions up to \d+, the first and the released"
            " one are kept",
        ),
        (["revoke", "nobody"], "device 'nobody': no such device is enrolled"),
        (["revoke", "no body"], "device 'no body': no such device is enrolled"),
        (["enrol", "--client", "operator"], "enrolment codes: client should be a device's name, not 'operator'"),
        (
            ["enrol", "--client", "a", "--count", "2"],
            "enrolment codes: count should be 1 for a named client, not 2",
        ),
    ],
)  # fmt: skip
def test_what_the_server_does_not_do(arguments: list[str], message: str, server: Served, capsys: Capture) -> None:
    assert server(*arguments) == 1
    assert re.fullmatch(message, _one_line(capsys))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["enrol", "--count", "10001"], "Invalid value for '--count': 10001 is not in the range 1<=x<=10000."),
        (["enrol", "--count", "0"], "Invalid value for '--count': 0 is not in the range 1<=x<=10000."),
        (["enrol", "--hours", "0"], "Invalid value for '--hours': 0.0 is not in the range 0<x<=8784."),
        (["enrol", "--hours", "8785"], "Invalid value for '--hours': 8785.0 is not in the range 0<x<=8784."),
        (["rollback", "latest"], "Invalid value for 'VERSION': 'latest' is not a valid integer range."),
        (["rounds", "--last", "1001"], "Invalid value for '--last': 1001 is not in the range 1<=x<=1000."),
        (["revoke"], "Missing argument 'CLIENT'."),
        (["serve", "bundles", "--port", "65536"], "Invalid value for '--port': 65536 is not in the range 0<=x<=65535."),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: Capture) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"Error: {message}"


def test_the_server_takes_what_the_options_allow(server: Served, capsys: Capture) -> None:
    assert server("enrol", "--count", people._MOST_CODES, "--hours", people._LONGEST_HOURS, "--json") == 0
    assert len(_json(capsys)["codes"]) == people._MOST_CODES


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_key(command: str, tmp_path: Path, capsys: Capture) -> None:
    argument = {"rollback": ["1"], "release": ["1"], "revoke": ["a"]}.get(command, [])
    assert main([command, *argument, "--keys", str(tmp_path)]) == 2
    assert _one_line(capsys) == (
        f"{tmp_path / 'operator.key'}: no such file; --keys names the folder where 'pocketfed serve' keeps its keys"
    )


def test_a_key_that_is_another_s(server: Served, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "operator.key").write_text("k" * 43)
    unknown = f"{server.url}: the server does not know this key; --keys names the folder with its own"
    for command in ("rounds", "pause"):
        assert Served(server.url, tmp_path)(command) == 2
        assert _one_line(capsys) == unknown
    shutil.copy(server.keys / "viewer.key", tmp_path)
    assert Served(server.url, tmp_path)("rounds", "--json") == 0  # the viewer's key is enough to look
    capsys.readouterr()
    assert Served(server.url, tmp_path)("pause") == 2
    assert _one_line(capsys) == unknown


def test_a_key_that_can_t_be_read(tmp_path: Path, capsys: Capture) -> None:
    key = tmp_path / "operator.key"
    key.mkdir()
    assert main(["pause", "--keys", str(tmp_path)]) == 2
    assert _one_line(capsys) == f"{key}: can't read the operator's key: Is a directory"
    key.rmdir()
    key.write_bytes(b"\xff" * 43)
    assert main(["pause", "--keys", str(tmp_path)]) == 2
    assert _one_line(capsys) == f"{key}: can't read the operator's key: it is no text"


def test_weights_that_can_t_be_written(server: Served, tmp_path: Path, capsys: Capture) -> None:
    assert server("release", 0, "--out", tmp_path) == 2
    output = capsys.readouterr()
    assert output.err == f"pocketfed: {tmp_path}: can't write the weights: Is a directory\n"
    assert output.out.startswith("version 0 is released: ")  # that is done


def test_a_server_that_is_not_there(server: Served, capsys: Capture) -> None:
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        assert Served(url, server.keys)("pause") == 3
    assert _one_line(capsys) == f"{url}/v1/pause: Connection refused (3 attempts)"


def test_a_path_that_is_no_server_s(server: Served, capsys: Capture) -> None:
    assert main(["rounds", "--server", f"{server.url}/fleet", "--keys", str(server.keys)]) == 3
    told = "the server answers with status 404; is it a pocketfed server?"
    assert _one_line(capsys) == f"{server.url}/fleet/v1/status: {told}"
    assert main(["rounds", "--server", f"{server.url}/?fleet", "--keys", str(server.keys)]) == 2
    assert _one_line(capsys) == f"server '{server.url}/?fleet': expected a URL such as http://127.0.0.1:8080"


def test_no_key_goes_to_another_machine_without_tls(server: Served, capsys: Capture) -> None:
    assert Served("http://192.0.2.1:8080", server.keys)("rounds") == 2
    assert _one_line(capsys) == (
        "server 'http://192.0.2.1:8080': what goes there without TLS can be read on the way, the caller's secret too;"
        " name an https:// server, or say --insecure"
    )


def test_tls(serve: Callable[..., Any], tmp_path: Path, capsys: Capture) -> None:
    authority = Authority(tmp_path)
    certificate = str(authority.issue("127.0.0.1"))
    process, keys = serve("--tls-cert", certificate, "--tls-key", certificate)
    with process as url:
        assert url.startswith("https://127.0.0.1:")
        server = Served(url, keys)
        assert server("pause", "--ca-file", authority.file) == 0
        assert capsys.readouterr().out == "paused: 'pocketfed resume' goes on\n"
        assert server("pause") == 4
        assert _one_line(capsys) == (
            f"{url}: the server's certificate does not verify: unable to get local issuer certificate; name the"
            " authority that issued it with --ca-file, if it is a private one"
        )
        assert server("pause", "--ca-file", keys / "operator.key") == 2
        assert _one_line(capsys) == (
            f"{keys / 'operator.key'}: holds no certificate; --ca-file names the authorities' certificates in PEM form"
        )
        assert server("pause", "--ca-file", keys / "nowhere.pem") == 2
        assert _one_line(capsys) == (
            f"{keys / 'nowhere.pem'}: can't read the authorities' certificates: No such file or directory"
        )
