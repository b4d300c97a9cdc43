"""The server's systemd unit: sound in systemd's own eyes, hardened, and yet able to run rounds."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from cli.main import app
from device_runtime.bundle import Bundle
from tests.serving import QUICK, serving, take_part
from tests.systemd import ANALYZE, analyze, confinement, exposure, needs_systemd, values

UNIT = Path(__file__).parents[2] / "deploy" / "server" / "pocketfed-server.service"
PROGRAM = Path(sys.executable).with_name("pocketfed")
STATE = "/var/lib/pocketfed-server"

# What systemd counts against the unit, each with the reason why it is so. Exposure goes from 0 to 10.
LARGEST_EXPOSURE = 1.5
EXPOSED = {
    "PrivateNetwork": "it is a server",
    "RestrictAddressFamilies_AF_INET_INET6": "it is a server",
    "IPAddressDeny": "devices may be anywhere",
    "RestrictAddressFamilies_AF_UNIX": "PostgreSQL's socket",
    "ProcSubset": "/proc/stat, from which the metrics take when the process began",
    "RootDirectoryOrRootImage": "Python is the system's",
    "DeviceAllow": "the clock, which ProtectClock lets be read",
}


def test_every_option_in_the_unit_exists() -> None:
    (start,), text = values(UNIT, "ExecStart"), UNIT.read_text()
    examples = dict(re.findall(r"^#   (\w+)=(\S.*)$", text, re.MULTILINE))
    assert set(examples) == {"POCKETFED_BUNDLE", "POCKETFED_DB", "POCKETFED_OPTIONS", "PGPASSFILE"}
    (default,) = values(UNIT, "Environment")
    words = examples | dict([default.split("=", 1)]) | {"STATE_DIRECTORY": STATE}
    program, command, *arguments = shlex.split(start)
    assert (program, command) == ("/opt/pocketfed/.venv/bin/pocketfed", "serve")
    assert arguments.pop() == "$POCKETFED_OPTIONS"
    expanded = [re.sub(r"\$\{(\w+)\}", lambda match: words[match[1]], word) for word in arguments]
    options = app.commands["serve"].make_context("serve", [*expanded, *examples["POCKETFED_OPTIONS"].split()]).params
    assert options["bundle"] == Path(examples["POCKETFED_BUNDLE"])
    assert options["db"] == f"sqlite:///{STATE}/server.db"
    assert (options["spool"], options["keys"]) == (Path(STATE, "spool"), Path(STATE))
    assert options["log_json"] and options["host"] == "127.0.0.1"
    assert options["goal"] == 100 and options["trusted_proxies"] == ("127.0.0.1",)


@needs_systemd
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/pocketfed/.venv/bin/pocketfed", str(PROGRAM)))
    verified = analyze("verify", unit)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


@needs_systemd
def test_its_exposure_is_small_and_each_part_of_it_meant() -> None:
    exposed, level = exposure(UNIT)
    assert exposed <= set(EXPOSED)
    assert level <= LARGEST_EXPOSURE


def test_rounds_are_run_under_the_unit_s_filters(digits_bundle: Bundle, tmp_path: Path) -> None:
    if ANALYZE is None:
        pytest.skip("systemd-analyze is missing: install Debian's systemd")
    places = ["--db", f"sqlite:///{tmp_path / 'server.db'}", "--spool", tmp_path / "spool", "--keys", tmp_path]
    options = ["--port", 0, "--open-enrolment", "--log-json", *QUICK]
    command = [*confinement(UNIT), PROGRAM, "serve", digits_bundle.path, *places, *options]
    with serving(command, tmp_path / "log") as url:
        assert take_part(url, digits_bundle, tmp_path) != take_part(url, digits_bundle, tmp_path)
    assert '"round": 2' in (tmp_path / "log").read_text()
