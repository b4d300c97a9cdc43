"""The systemd unit: sound in systemd's own eyes, hardened, and yet able to do what the service does."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from device_runtime import cli
from device_runtime.bundle import Bundle
from device_runtime.cli import main
from tests.systemd import ANALYZE, analyze, confinement, exposure, needs_systemd, values, version

PROGRAM = Path(sys.executable).with_name("pocketfed-device")

# What systemd counts against the unit, each with the reason why it is so. Exposure goes from 0 to 10.
LARGEST_EXPOSURE = 1.5
EXPOSED = {
    "PrivateNetwork": "it talks to a server",
    "RestrictAddressFamilies_AF_INET_INET6": "it talks to a server",
    "IPAddressDeny": "the server's address is not known here",
    "RestrictAddressFamilies_AF_UNIX": "the system bus, to ask whether the network is metered",
    "ProcSubset": "/proc/loadavg, to ask whether the device is idle",
    "SystemCallFilter_resources": "limits of memory that the program sets itself",
    "RootDirectoryOrRootImage": "Python and the wheel are the system's",
    "DeviceAllow": "the clock, which ProtectClock lets be read",
}


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit as the installed program prints it."""
    printed = subprocess.run([PROGRAM, "systemd-unit"], check=True, capture_output=True, text=True, timeout=60)
    assert printed.stderr == ""
    path = tmp_path / "pocketfed-device.service"
    path.write_text(printed.stdout)
    return path


def test_every_command_and_option_in_the_unit_exists(unit: Path) -> None:
    (start,) = values(unit, "ExecStart")
    program, *arguments = shlex.split(start)
    assert program == str(PROGRAM)
    examples = dict(re.findall(r"^#   (POCKETFED_\w+)=(.*?)(?:  .*| further .*)?$", unit.read_text(), re.MULTILINE))
    assert arguments.pop() == "$POCKETFED_OPTIONS"
    folders = {"CACHE_DIRECTORY": "/var/cache/pocketfed-device", "STATE_DIRECTORY": "/var/lib/pocketfed-device"}
    words = examples | folders
    expanded = [re.sub(r"\$\{(\w+)\}", lambda match: words[match[1]], word) for word in arguments]
    options = cli._parser().parse_args([*expanded, *examples["POCKETFED_OPTIONS"].split()])
    assert options.server == "https://fleet.example:8443"
    assert options.population == "digits_mlp"
    assert options.client == "board-7"
    assert options.data == Path("/var/lib/pocketfed-device/examples.npz")
    assert options.cache == Path("/var/cache/pocketfed-device")
    assert options.root == Path("/var/lib/pocketfed-device")
    assert options.state == Path("/var/lib/pocketfed-device/rounds")
    assert options.keep_trying and options.log_json
    assert options.threads == 2
    assert set(examples) - {word.strip("${}") for word in arguments} == {"POCKETFED_OPTIONS", "POCKETFED_TRUSTED_KEYS"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("NoNewPrivileges", "yes"), ("PrivateTmp", "yes"), ("ProtectSystem", "strict"), ("ProtectHome", "yes"),
        ("StateDirectory", "pocketfed-device"), ("MemoryMax", r"\d+M"), ("CPUQuota", r"\d+%"), ("TasksMax", r"\d+"),
        ("Nice", "19"), ("IOSchedulingClass", "idle"), ("Restart", "on-failure"), ("RestartSec", r"\d+s"),
    ],
)  # fmt: skip
def test_what_the_unit_promises(key: str, value: str, unit: Path) -> None:
    (found,) = values(unit, key)
    assert re.fullmatch(value, found)


def test_no_exit_code_keeps_the_unit_down(unit: Path) -> None:
    """Examples that an app has not written yet, or a full disk, are exit code 2 as well."""
    assert values(unit, "RestartPreventExitStatus") == []


@needs_systemd
def test_systemd_finds_nothing_wrong(unit: Path) -> None:
    verified = analyze("verify", unit)
    ignored = {"RestartSteps", "RestartMaxDelaySec"} if version() < 254 else set()
    told = {
        re.sub(r"^.*Unknown key (?:name )?'(\w+)' in section.*$", r"\1", line) for line in verified.stderr.splitlines()
    }
    assert (verified.returncode, verified.stdout) == (0, "")
    assert told == ignored


@needs_systemd
def test_a_wrong_unit_would_be_found(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("Type=exec", "Type=wrong").replace("Nice=19", "Nise=19"))
    told = analyze("verify", unit).stderr
    assert "wrong" in told and "Nise" in told


@needs_systemd
def test_its_exposure_is_small_and_each_part_of_it_meant(unit: Path) -> None:
    exposed, level = exposure(unit)
    assert exposed <= set(EXPOSED)
    assert level <= LARGEST_EXPOSURE


@pytest.fixture
def confined(unit: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program under the unit's filters of system calls, address families and executable memory."""
    if ANALYZE is None:
        pytest.skip("systemd-analyze is missing: install Debian's systemd")
    prefix = confinement(unit)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(argument) for argument in (*prefix, *arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, check=False
        )

    return run


Confined = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    ("attempt", "refused"),
    [
        ("import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)", True),
        ("import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)", False),
        ("import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", True),
        ("import socket; socket.socket(socket.AF_INET, socket.SOCK_STREAM)", False),
        ("import os; os.chown('.', 0, 0)", True),
        ("import os; os.setuid(0)", True),
        ("import subprocess; subprocess.run(['true'], check=True)", False),
        ("import sqlite3; sqlite3.connect(':memory:').execute('create table t (x)')", False),
    ],
)
def test_the_filter_filters(attempt: str, refused: bool, confined: Confined) -> None:
    done = confined(sys.executable, "-c", attempt)
    assert done.returncode == (1 if refused else 0), done.stderr
    if refused:
        assert done.stderr.splitlines()[-1].startswith("PermissionError: [Errno 1]")


def test_the_device_can_work_under_the_unit_s_filters(
    confined: Confined, digits_bundle: Bundle, examples_file: Callable[[int, int], Path], tmp_path: Path
) -> None:
    tested = confined(PROGRAM, "selftest", digits_bundle.path, "--threads", 2)
    assert (tested.returncode, tested.stderr) == (0, "")
    data, update = examples_file(20, 0), tmp_path / "update"
    trained = confined(PROGRAM, "train", digits_bundle.path, "--data", data, "--out", update, "--codec", "q8")
    assert (trained.returncode, trained.stderr) == (0, "")
    assert (
        main(["train", str(digits_bundle.path), "--data", str(data), "--out", str(tmp_path / "free"), "--codec", "q8"])
        == 0
    )
    assert update.read_bytes() == (tmp_path / "free").read_bytes()
    kept = confined(PROGRAM, "data", "add", "--for", digits_bundle.path, tmp_path / "store", data)
    assert (kept.returncode, kept.stderr) == (0, "")
    trained = confined(PROGRAM, "train", digits_bundle.path, "--data", tmp_path / "store", "--out", tmp_path / "third")
    assert (trained.returncode, trained.stderr) == (0, "")
    asked = confined(PROGRAM, "conditions")
    assert asked.stdout.startswith("idle ") and asked.stderr == ""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        asked = confined(
            PROGRAM, "run", "--server", url, "--population", "p", "--data", data, "--cache", tmp_path / "cache",
            "--attempts", 1,
        )  # fmt: skip
    assert asked.returncode == 3
    assert "Connection refused" in asked.stderr


def test_a_program_of_another_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systemd-unit", "--program", "/opt/pocketfed/bin/pocketfed-device"]) == 0
    assert "\nExecStart=/opt/pocketfed/bin/pocketfed-device run --server " in capsys.readouterr().out
    assert main(["systemd-unit", "--program", "/opt/my $programs/%h"]) == 2
    assert capsys.readouterr().err == (
        "pocketfed-device: /opt/my $programs/%h: expected a path of letters, digits and '/._+@-', which a unit file"
        " takes as they are; name another one with --program\n"
    )
