"""Enrolment: the secret that a device draws, keeps and tells its server once, and every answer to that."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from device_runtime.cli import main
from device_runtime.enrolment import Credentials, enrol
from device_runtime.errors import InputError, NetworkError, TurnedAwayError
from device_runtime.messages import SHORTEST_SECRET
from device_runtime.server_client import ServerClient
from device_runtime.transport import RetryPolicy, Transport
from tests.device_runtime.callers import believed

Capture = pytest.CaptureFixture[str]
MakeFile = Callable[[int, int], Path]
ENROLLED = (200, b'{"verdict": "enrolled"}')
COMPLETE = (200, b'{"decision": "complete"}')


def refused(reason: str) -> tuple[int, bytes]:
    return 403, json.dumps({"verdict": "refused", "reason": reason, "message": "says the server"}).encode()


def kept(folder: Path, server: str = "http://s:1", client: str = "a") -> Credentials:
    return Credentials(folder, server, client)


def secrets_of(script: Any) -> list[str]:
    """Those that a server was told, in turn."""
    return [json.loads(body)["secret"] for _, path, body, _ in script.requests if path == "/v1/enrol"]


def enrolling(url: str, folder: Path, *options: str) -> list[str]:
    where = ["--server", url, "--client", "a", "--cache", str(folder), "--attempts", "2", "--retry-seconds", "0.01"]
    return ["enrol", *where, *options]


def running(url: str, folder: Path, data: Path, *options: str) -> list[str]:
    return ["run", *enrolling(url, folder)[1:], "--population", "p", "--data", str(data), *options]


def one_line(capsys: Capture) -> str:
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    return line.removeprefix("pocketfed-device: ")


def test_a_secret_is_drawn_once_and_is_its_owner_s_alone(tmp_path: Path) -> None:
    first = kept(tmp_path).caller()
    assert len(first.secret) >= SHORTEST_SECRET and first.secret.isascii() and first.secret.isprintable()
    assert kept(tmp_path).caller() == first
    assert kept(tmp_path).path.stat().st_mode & 0o777 == 0o600
    assert kept(tmp_path).path.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in (tmp_path / "secrets").iterdir()] == [kept(tmp_path).path.name]


def test_what_a_killed_process_left_beside_it_does_not_open_it_to_others(tmp_path: Path) -> None:
    credentials = kept(tmp_path)
    credentials.path.parent.mkdir()
    beside = credentials.path.with_name(credentials.path.name + ".new")
    beside.write_bytes(b"half")
    beside.chmod(0o666)
    credentials.caller()
    assert credentials.path.stat().st_mode & 0o777 == 0o600


def test_each_server_and_client_has_a_secret_of_its_own(tmp_path: Path) -> None:
    callers = [
        kept(tmp_path, server, client).caller()
        for server in ("http://s:1", "http://s:2", "https://s:1")
        for client in ("a", "b")
    ]
    assert len({caller.secret for caller in callers}) == 6


def test_processes_that_want_a_secret_at_once_have_the_same(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from device_runtime.enrolment import Credentials;"
        " sys.stdin.readline(); print(Credentials(Path(sys.argv[1]), 'http://s:1', 'a').caller().secret)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        told = list(threads.map(lambda process: process.communicate("\n", timeout=60)[0], processes))
    assert set(told) == {kept(tmp_path).caller().secret + "\n"}


def test_a_secret_that_was_damaged_is_drawn_anew(tmp_path: Path) -> None:
    credentials = kept(tmp_path)
    first = credentials.caller()
    credentials.confirm()
    data = bytearray(credentials.path.read_bytes())
    data[len(data) // 2] ^= 1
    credentials.path.write_bytes(data)
    assert not credentials.enrolled
    assert credentials.caller() != first


def test_a_secret_that_can_t_be_read_is_not_lost(tmp_path: Path) -> None:
    credentials = kept(tmp_path)
    credentials.path.mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        credentials.caller()
    assert str(caught.value) == f"{credentials.path}: can't read this device's secret: Is a directory"


def test_a_folder_that_can_t_be_written(script: Any, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("")
    assert main(enrolling(script.url, tmp_path, "--state", str(tmp_path / "file"))) == 2
    path = Credentials(tmp_path / "file", script.url, "a").path
    assert one_line(capsys) == f"{path}: can't write it: Not a directory; make room there, or change --cache or --state"
    assert script.requests == []


def test_enrol(script: Any, tmp_path: Path, capsys: Capture) -> None:
    script.answers = [ENROLLED]
    assert main(enrolling(script.url, tmp_path, "--code", "open sesame")) == 0
    assert capsys.readouterr() == (f"enrolled as 'a' at {script.url}\n", "")
    credentials = kept(tmp_path / "rounds", script.url)
    assert credentials.enrolled
    ((method, path, body, headers),) = script.requests
    expected = {"code": "open sesame", "client": "a", "secret": credentials.caller().secret}
    assert (method, path, json.loads(body)) == ("POST", "/v1/enrol", expected)
    assert "Authorization" not in headers


def test_the_state_folder_is_where_the_secret_is(script: Any, tmp_path: Path) -> None:
    script.answers = [ENROLLED]
    assert main(enrolling(script.url, tmp_path / "cache", "--state", str(tmp_path / "state"))) == 0
    assert kept(tmp_path / "state", script.url).enrolled
    assert not (tmp_path / "cache").exists()


def test_an_enrolment_whose_answer_was_lost_is_repeated_with_the_same_secret(
    script: Any, tmp_path: Path, capsys: Capture
) -> None:
    """Within a process, and by the next one; the secret is on the disk before it is sent."""
    script.answers = [(200, b"lost"), (200, b"lost"), ENROLLED]
    script.cut = [0, 0]
    assert main(enrolling(script.url, tmp_path, "--code", "c")) == 3
    assert one_line(capsys).startswith(f"{script.url}/v1/enrol: IncompleteRead")
    secret = kept(tmp_path / "rounds", script.url).caller().secret
    assert not kept(tmp_path / "rounds", script.url).enrolled
    assert main(enrolling(script.url, tmp_path, "--code", "c")) == 0
    assert secrets_of(script) == [secret] * 3


@pytest.mark.parametrize(
    ("reason", "options", "message"),
    [
        (
            "code",
            ["--code", "x"],
            "'a' is not enrolled: the code is unknown, used, expired or of another client: ask the fleet's operator for"
            " another one",
        ),
        (
            "code",
            [],
            "'a' is not enrolled, and the server enrols nobody without a code: ask the fleet's operator for one, then"
            " 'pocketfed-device enrol --server URL --client a --code CODE'",
        ),
        (
            "client",
            ["--code", "x"],
            "'a' is not enrolled: the server takes no client of this name: name another one with --client",
        ),
        (
            "taken",
            ["--code", "x"],
            "'a' is not enrolled: the name is another device's, or this one's with a secret that is lost: name another"
            " one with --client, or ask the fleet's operator for a code for this name",
        ),
        (
            "secret",
            ["--code", "x"],
            "'a' is not enrolled: the secret is too short for this server: remove {path} and enrol again",
        ),
        ("mood", ["--code", "x"], "'a' is not enrolled: mood: says the server"),
    ],
)
@pytest.mark.parametrize("command", ["enrol", "run"])
def test_a_refusal_is_one_line_that_says_what_to_do(
    script: Any,
    examples_file: MakeFile,
    tmp_path: Path,
    capsys: Capture,
    command: str,
    reason: str,
    options: list[str],
    message: str,
) -> None:
    script.answers = [refused(reason)]
    arguments = {
        "enrol": enrolling(script.url, tmp_path, *options),
        "run": running(script.url, tmp_path, examples_file(5, 0), *options),
    }
    assert main(arguments[command]) == 5
    credentials = kept(tmp_path / "rounds", script.url)
    assert one_line(capsys) == message.format(path=credentials.path)
    assert not credentials.enrolled
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b'{"verdict": "yes"}', b'{"verdict": "enrolled", "reason": 1}', b'{"verdict": ["enrolled"]}']
)
def test_an_answer_that_is_none_enrols_nobody(script: Any, tmp_path: Path, capsys: Capture, answer: bytes) -> None:
    script.answers = [(200, answer)]
    assert main(enrolling(script.url, tmp_path)) == 3
    assert (
        one_line(capsys) == "enrolment: the server's answer (status 200) is not understood; is it a pocketfed server?"
    )
    assert not kept(tmp_path / "rounds", script.url).enrolled


def test_a_busy_server_is_asked_again(script: Any, tmp_path: Path) -> None:
    waits: list[float] = []
    script.answers, script.retry_after = [(429, b""), (503, b""), ENROLLED], ["7", "30", "0"]
    server = ServerClient(Transport(script.url, retry=RetryPolicy(3), sleep=waits.append, jitter=lambda: 0.0))
    enrol(server, kept(tmp_path), "")
    assert waits == [7.0, 30.0]


@pytest.mark.parametrize("name", ["", "a b", "a:b", "ä", "a/b", "n" * 65, "a\n"])
def test_a_name_that_no_client_can_have(script: Any, tmp_path: Path, capsys: Capture, name: str) -> None:
    assert main(enrolling(script.url, tmp_path, "--client", name)) == 2
    assert one_line(capsys) == (
        f"client {name!r}: expected a name of 1 to 64 letters, digits, '-', '_' and '.'; name another one with --client"
    )
    assert script.requests == []


@pytest.mark.parametrize(
    ("command", "url"), [("enrol", "http://fleet.example"), ("run", "http://192.0.2.1:8080")], ids=["enrol", "run"]
)
def test_a_secret_goes_to_no_other_machine_without_tls(
    examples_file: MakeFile, tmp_path: Path, capsys: Capture, command: str, url: str
) -> None:
    arguments = enrolling(url, tmp_path) if command == "enrol" else running(url, tmp_path, examples_file(5, 0))
    assert main(arguments) == 2
    assert one_line(capsys) == (
        f"server {url!r}: what goes there without TLS can be read on the way, the caller's secret too; name an"
        " https:// server, or say --insecure"
    )
    assert not (tmp_path / "rounds").exists()


@pytest.mark.parametrize("content", ["the-code\n", "the-code", "  the-code \r\nmore\n"])
def test_a_code_from_a_file(script: Any, tmp_path: Path, content: str) -> None:
    script.answers = [ENROLLED]
    (tmp_path / "code").write_text(content)
    assert main(enrolling(script.url, tmp_path, "--code-file", str(tmp_path / "code"))) == 0
    assert json.loads(script.requests[0][2])["code"] == "the-code"


def test_a_code_from_standard_input(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script.answers = [ENROLLED]
    monkeypatch.setattr("sys.stdin", io.StringIO("the-code\n"))
    assert main(enrolling(script.url, tmp_path, "--code-file", "-")) == 0
    assert json.loads(script.requests[0][2])["code"] == "the-code"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't read the code: No such file or directory"),
        (b"", "expected the code of the fleet's operator in its first line"),
        (b"\nsecond\n", "expected the code of the fleet's operator in its first line"),
        (b"\xff\xfe\n", "can't read the code: it is not text"),
    ],
    ids=["missing", "empty", "second line", "no text"],
)
def test_a_file_without_a_code(
    script: Any, tmp_path: Path, capsys: Capture, content: bytes | None, message: str
) -> None:
    path = tmp_path / "code"
    if content is not None:
        path.write_bytes(content)
    assert main(enrolling(script.url, tmp_path, "--code-file", str(path))) == 2
    assert one_line(capsys) == f"{path}: {message}"
    assert script.requests == []


def test_one_code_is_enough(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["enrol", "--server", "http://127.0.0.1:1", "--code", "a", "--code-file", "b"])
    assert "argument --code-file: not allowed with argument --code" in capsys.readouterr().err


def test_run_enrols_itself_once(script: Any, examples_file: MakeFile, tmp_path: Path, capsys: Capture) -> None:
    """With an empty code, which a server with open enrolment takes; afterwards with the kept secret."""
    script.answers = [ENROLLED, COMPLETE]
    arguments = running(script.url, tmp_path, examples_file(5, 0))
    assert main(arguments) == 0
    assert main(arguments) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == ["enrolled as 'a'", "the task is complete", "the task is complete"]
    assert [path for _, path, *_ in script.requests] == ["/v1/enrol", "/v1/check-in", "/v1/check-in"]
    enrolment, *check_ins = script.requests
    told = json.loads(enrolment[2])
    assert (told["code"], "Authorization" in enrolment[3]) == ("", False)
    for *_, headers in check_ins:
        scheme, content = headers["Authorization"].split(" ")
        assert (scheme, b64decode(content).decode()) == ("Basic", f"a:{told['secret']}")


def test_run_takes_a_code_and_needs_its_file_once(script: Any, examples_file: MakeFile, tmp_path: Path) -> None:
    script.answers = [ENROLLED, COMPLETE]
    path = tmp_path / "code"
    path.write_text("one-use")
    arguments = running(script.url, tmp_path, examples_file(5, 0), "--code-file", str(path))
    assert main(arguments) == 0
    path.unlink()
    assert main(arguments) == 0
    assert json.loads(script.requests[0][2])["code"] == "one-use"


def test_run_goes_on_with_an_enrolment_whose_answer_was_lost(
    script: Any, examples_file: MakeFile, tmp_path: Path
) -> None:
    script.answers, script.cut = [(200, b"x"), (200, b"x"), ENROLLED, COMPLETE], [0, 0]
    assert main(enrolling(script.url, tmp_path, "--code", "c")) == 3
    assert main(running(script.url, tmp_path, examples_file(5, 0))) == 0
    assert len(set(secrets_of(script))) == 1


def test_a_device_that_was_revoked_is_told_so(
    script: Any, examples_file: MakeFile, tmp_path: Path, capsys: Capture
) -> None:
    believed(script.url, tmp_path)
    script.answers = [(401, b'{"reason": "unknown_caller", "message": "not enrolled"}')]
    assert main(running(script.url, tmp_path, examples_file(5, 0))) == 5
    assert one_line(capsys) == (
        "the server does not know this device by its secret, or has revoked it: enrol it anew with 'pocketfed-device"
        " enrol' and a code of the fleet's operator"
    )
    assert len(script.requests) == 1


def test_a_device_that_is_turned_away_and_keeps_trying_comes_back_in_four_hours(
    script: Any, examples_file: MakeFile, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code, from standard input, is asked for once."""
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 4:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("time.sleep", wait)
    monkeypatch.setattr("sys.stdin", io.StringIO("the-code\n"))
    turned_away = (200, b'{"decision": "reject", "reason": "client"}')
    script.answers = [refused("code"), ENROLLED, (401, b"{}"), COMPLETE, turned_away]
    options = ["--keep-trying", "--log-json", "--code-file", "-"]
    assert main(running(script.url, tmp_path, examples_file(5, 0), *options)) == 0
    told = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert told == ["error", "enrolled", "error", "complete", "error", "ended"]
    assert all(11_520 <= wait <= 17_280 for wait in (waits[0], waits[1], waits[3]))
    assert 720 <= waits[2] <= 1080
    codes = [json.loads(body)["code"] for _, path, body, _ in script.requests if path == "/v1/enrol"]
    assert codes == ["the-code"] * 2


def test_the_secret_is_in_no_log(
    script: Any, examples_file: MakeFile, tmp_path: Path, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    script.answers = [refused("taken"), ENROLLED, (200, b"?"), (401, b""), (500, b"")]
    data = examples_file(5, 0)
    for options in ([], ["--log-json"]):
        main(enrolling(script.url, tmp_path, "--code", "a-code-of-one-use", *options))
    for _ in range(3):
        main(running(script.url, tmp_path, data, "--log-json"))
    captured = capsys.readouterr()
    secret = kept(tmp_path / "rounds", script.url).caller().secret
    for text in (secret, "a-code-of-one-use"):
        assert text not in captured.out + captured.err + caplog.text
    assert len(script.requests) >= 5
    for name in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert (secret.encode() in name.read_bytes()) == (name.parent.name == "secrets")


def test_errors_of_the_calls_themselves(script: Any, tmp_path: Path) -> None:
    script.answers = [refused("taken"), (500, b"")]
    server = ServerClient(Transport(script.url, retry=RetryPolicy(1)))
    with pytest.raises(TurnedAwayError):
        enrol(server, kept(tmp_path), "c")
    with pytest.raises(NetworkError):
        enrol(server, kept(tmp_path), "c")


@pytest.mark.skipif(os.name == "nt", reason="needs modes")
def test_help_says_that_others_can_see_a_code(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["enrol", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "enrol with this one-use code of the fleet's operator; others here can see it" in text
    assert "5 turned away by the server" in text
