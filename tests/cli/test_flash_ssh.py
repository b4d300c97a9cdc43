"""`pocketfed flash` to a real sshd on 127.0.0.1, which the test starts, with the device's real program behind it."""

from __future__ import annotations

import getpass
import json
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.main import main
from device_runtime.bundle import WEIGHTS, Bundle, open_bundle
from device_runtime.errors import IntegrityError
from device_runtime.installation import Installation
from device_runtime.installation_state import Release
from device_runtime.keys import read_private_key
from export.flashing.plan import Load, Runner
from export.flashing.targets import parse_target
from export.signing import sign_bundle

Capture = pytest.CaptureFixture[str]
SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
PROGRAMS = Path(sys.executable).parent

pytestmark = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None,
    reason="OpenSSH is missing: install Debian's openssh-server and openssh-client",
)


def new_key(path: Path) -> str:
    """Make a key; its public half as ``authorized_keys`` takes it."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True)
    return path.with_name(f"{path.name}.pub").read_text()


@dataclass(frozen=True)
class Board:
    """A host to flash: this machine, by way of its own sshd."""

    folder: Path
    port: int

    @property
    def config(self) -> Path:
        """Of a client that knows the host and may log in."""
        return self.folder / "client"

    def client(self, name: str, **settings: str) -> Path:
        """The configuration of a client, of which some settings are others."""
        path = self.folder / name
        known = {
            "IdentityFile": str(self.folder / "user"),
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": str(self.folder / "known_hosts"),
            "GlobalKnownHostsFile": "none",
            "StrictHostKeyChecking": "yes",
        }
        path.write_text("".join(f"{key} {value}\n" for key, value in (known | settings).items()))
        return path

    def target(self, root: Path) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{root}"

    def flash(
        self, bundle: Bundle, root: Path, code: int, capsys: Capture, *options: object, config: Path | None = None
    ) -> str:
        """Flash the bundle to an installation folder; the detail that is told."""
        arguments = [bundle.path, self.target(root), "--ssh-config", config or self.config, "--json", *options]
        assert main(["flash", *map(str, arguments)]) == code
        told = json.loads(capsys.readouterr().out)
        assert told["ok"] == (code == 0)
        (target,) = told["targets"]
        assert (target["target"], target["exit_code"]) == (self.target(root), code)
        assert list(root.glob(".flash-*")) == []  # nothing is left there, however it ended
        return str(target["detail"])


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    shell = pwd.getpwuid(os.getuid()).pw_shell
    if Path(shell).name in ("nologin", "false"):
        pytest.skip(f"this user can't log in: the shell is {shell}")
    folder = tmp_path_factory.mktemp("sshd")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # which Debian's sshd needs when it is root's
    host = new_key(folder / "host")
    (folder / "authorized_keys").write_text(new_key(folder / "user"))
    new_key(folder / "stranger")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host}")
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized_keys",
        "PidFile": "none",
        "UsePAM": "no",
        "StrictModes": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "MaxStartups": "100",
        "SetEnv": f"PATH={PROGRAMS}:{os.defpath}",
    }
    (folder / "config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    assert SSHD is not None
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(folder / "config")], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    board = Board(folder, port)
    board.client("client")
    try:
        for _ in range(200):
            assert process.poll() is None, (folder / "log").read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield board
    finally:
        process.terminate()
        process.wait(30)


def passed(detail: str) -> str:
    action, _, rest = detail.partition("; self-test passed on ")
    assert "largest relative difference" in rest, detail
    return action


def test_versions_in_turn(
    board: Board, digits_bundle: Bundle, digits_2: Bundle, wrong_3: Bundle, tmp_path: Path, capsys: Capture
) -> None:
    root = tmp_path / "an installation"  # whose name a shell would take apart
    assert passed(board.flash(digits_bundle, root, 0, capsys)) == "digits_mlp version 1 installed"
    assert passed(board.flash(digits_bundle, root, 0, capsys)) == "digits_mlp version 1 unchanged"
    assert passed(board.flash(digits_2, root, 0, capsys)) == "digits_mlp version 2 installed"
    expected = f"{Release.of(digits_bundle)}: older than {Release.of(digits_2)}, the newest that was installed here; "
    assert board.flash(digits_bundle, root, 4, capsys).startswith(expected)
    failed = board.flash(wrong_3, root, 1, capsys)
    assert failed.startswith(f"{Release.of(wrong_3)}: self-test FAILED on ")
    assert failed.endswith(f"; {Release.of(digits_2)} stays")
    assert open_bundle(root / "current").identity == digits_2.identity
    assert open_bundle(root / "previous").identity == digits_bundle.identity


def test_a_trusted_key_goes_along(board: Board, digits_copy: Path, tmp_path: Path, capsys: Capture) -> None:
    key, root = tmp_path / "release key", tmp_path / "root"
    assert main(["keygen", "--out", str(key)]) == 0
    capsys.readouterr()
    sign_bundle(open_bundle(digits_copy), read_private_key(key))
    bundle = open_bundle(digits_copy)
    arguments = [str(digits_copy), board.target(root), "--trusted-key", f"{key}.pub", "--dry-run", "--json"]
    assert main(["flash", *arguments]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["targets"]
    copy, install = (next(step for step in plan["steps"] if step["title"] == name) for name in ("copy", "install"))
    assert "trusted-0.pub" in copy["sends"]
    assert "--trusted-key" in install["command"][-1]
    assert passed(board.flash(bundle, root, 0, capsys, "--trusted-key", f"{key}.pub")).endswith("installed")
    assert set(bundle.files) == {path.name for path in (root / "current").iterdir()}


def test_who_may_not_log_in(board: Board, digits_bundle: Bundle, tmp_path: Path, capsys: Capture) -> None:
    config = board.client("stranger-client", IdentityFile=str(board.folder / "stranger"))
    told = board.flash(digits_bundle, tmp_path / "root", 3, capsys, config=config)
    where = f"{getpass.getuser()}@127.0.0.1"
    assert told == (
        f"authentication failed: {where}: Permission denied (publickey).; put this user's public key into"
        " authorized_keys there: passwords are not asked for"
    )
    assert not (tmp_path / "root").exists()


def test_a_host_that_is_not_known(board: Board, digits_bundle: Bundle, tmp_path: Path, capsys: Capture) -> None:
    config = board.client("forgetful-client", UserKnownHostsFile="/dev/null")
    told = board.flash(digits_bundle, tmp_path / "root", 3, capsys, config=config)
    expected = "the host's key is not known here, or is another one than before; connect once with ssh, and compare it"
    assert told == expected


def test_a_host_that_is_down(board: Board, digits_bundle: Bundle, tmp_path: Path, capsys: Capture) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        down = Board(board.folder, port)
        told = down.flash(digits_bundle, tmp_path / "root", 3, capsys)
    assert told == f"can't be reached: ssh: connect to host 127.0.0.1 port {port}: Connection refused"


def test_a_host_without_the_device_s_program(
    board: Board, digits_bundle: Bundle, tmp_path: Path, capsys: Capture
) -> None:
    told = board.flash(
        digits_bundle, tmp_path / "root", 2, capsys, "--device-command", "/opt/no where/pocketfed-device"
    )
    assert told == (
        "no /opt/no where/pocketfed-device there: install the device's wheel, or say where it is with --device-command"
    )
    assert not (tmp_path / "root").exists()


def test_a_program_that_is_another(board: Board, digits_bundle: Bundle, tmp_path: Path, capsys: Capture) -> None:
    told = board.flash(digits_bundle, tmp_path / "root", 4, capsys, "--device-command", "echo")
    assert told == "echo there gave no report; install this version of the device's wheel there"


def test_a_folder_that_cannot_be_made(board: Board, digits_bundle: Bundle, capsys: Capture) -> None:
    told = board.flash(digits_bundle, Path("/proc/pocketfed"), 2, capsys)
    assert told.startswith("can't write there: mkdir: ")
    assert told.endswith("; what was installed stays")


def test_a_full_disk(board: Board, digits_bundle: Bundle, digits_2: Bundle, small_disk: Path, capsys: Capture) -> None:
    Installation(small_disk).install(digits_bundle.path)
    told = board.flash(digits_2, small_disk, 2, capsys)
    assert told.startswith("no room there: tar: ") and told.endswith("; what was installed stays")
    assert open_bundle(small_disk / "current").identity == digits_bundle.identity


def test_a_copy_that_is_damaged_there(board: Board, digits_bundle: Bundle, tmp_path: Path) -> None:
    """The steps one by one, and between them the board's medium turns a byte."""
    root = tmp_path / "root"
    target = parse_target(board.target(root), "pocketfed-device", board.config)
    steps = {step.title: step for step in target.plan(Load(digits_bundle, (), "token")).all}
    runner = Runner()
    steps["prepare"].do(runner)
    steps["copy"].do(runner)
    steps["verify"].do(runner)
    weights = root / ".flash-token" / digits_bundle.path.name / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(IntegrityError) as refused:
        steps["verify"].do(runner)
    told = f"{target.name}: {WEIGHTS} was damaged on the way: its SHA-256 is not the manifest's"
    assert str(refused.value) == told
    with pytest.raises(IntegrityError, match="its SHA-256 is not the manifest's: changed or damaged"):
        steps["install"].do(runner)  # and the device itself would not take it either
    steps["clean"].do(runner)
    assert not (root / "current").exists() and list(root.glob(".flash-*")) == []


def test_what_a_killed_flash_has_left(board: Board, digits_bundle: Bundle, tmp_path: Path, capsys: Capture) -> None:
    root = tmp_path / "root"
    old, young = root / ".flash-old", root / ".flash-young"
    for folder, age in ((old, 200_000), (young, 100)):
        (folder / "some.bundle").mkdir(parents=True)
        os.utime(folder, (time.time() - age,) * 2)
    assert main(["flash", str(digits_bundle.path), board.target(root), "--ssh-config", str(board.config)]) == 0
    assert [path.name for path in root.glob(".flash-*")] == [young.name]


def test_a_fleet(
    board: Board, digits_bundle: Bundle, digits_2: Bundle, tmp_path: Path, capsys: Capture,
    processes_of: Callable[[Path], dict[int, str]],
) -> None:  # fmt: skip
    roots = [tmp_path / f"board-{number}" for number in range(4)]
    Installation(roots[2]).install(digits_2.path)
    file = tmp_path / "targets"
    file.write_text("# the fleet\n" + "".join(f"{board.target(root)}\n" for root in roots) + f"dir:{tmp_path}/no\n")
    arguments = ["flash", str(digits_bundle.path), "--targets", str(file), "--ssh-config", str(board.config)]
    assert main([*arguments, "--jobs", "3", "--json"]) == 4
    told = json.loads(capsys.readouterr().out)["targets"]
    assert [target["exit_code"] for target in told] == [0, 0, 4, 0, 2]
    versions = [open_bundle(root / "current").manifest.version for root in roots]
    assert versions == [1, 1, 2, 1]
    assert processes_of(board.config) == {}


def test_the_dry_run_s_commands_are_those_that_run(
    board: Board, digits_bundle: Bundle, tmp_path: Path, capsys: Capture
) -> None:
    """As they are printed, in a real shell, with the archive from the system's own tar: the bundle is installed."""
    root = tmp_path / "root"
    arguments = [str(digits_bundle.path), board.target(root), "--ssh-config", str(board.config), "--dry-run"]
    assert main(["flash", *arguments]) == 0
    archive = ""
    for text in capsys.readouterr().out.splitlines():
        if text.startswith("# on its standard input, a tar archive of "):
            names = text.removeprefix("# on its standard input, a tar archive of ")
            archive = f"tar -c -C {shlex.quote(str(digits_bundle.path.parent))} {names} | "
        elif not text.startswith("#"):
            command = f"{archive}{text}" if "tar -x -m" in text else text
            done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=300, check=False)
            assert (done.returncode, done.stderr) == (0, ""), command
    assert open_bundle(root / "current").identity == digits_bundle.identity
    assert list(root.glob(".flash-*")) == []
