"""What systemd itself says of a unit, and a program under the unit's filters."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is missing: install Debian's systemd")
_SANDBOX = Path(__file__).parent / "device_runtime" / "sandbox.py"


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What systemd-analyze says."""
    assert ANALYZE is not None
    return subprocess.run([ANALYZE, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def version() -> int:
    """Of the systemd here."""
    return int(re.findall(r"systemd (\d+)", analyze("--version").stdout)[0])


def values(unit: Path, key: str) -> list[str]:
    """Of all lines with this key."""
    return re.findall(rf"^{key}=(.*)$", unit.read_text(), re.MULTILINE)


def exposure(unit: Path) -> tuple[set[str], float]:
    """What systemd counts against a unit, and how much, from 0 to 10."""
    table = json.loads(analyze("security", "--offline=true", "--json=short", unit).stdout)
    exposed = {row["json_field"] for row in table if row["exposure"] not in (None, "0.0")}
    summary = analyze("security", "--offline=true", "--no-pager", unit).stdout
    (level,) = re.findall(r"Overall exposure level for \S+ ([0-9.]+) ", summary)
    return exposed, float(level)


def allowed_calls(unit: Path) -> set[str]:
    """Names of the system calls that the unit's filter lets through, as this systemd counts them."""
    sets: dict[str, list[str]] = {}
    for line in analyze("syscall-filter").stdout.splitlines():
        if line.startswith("@"):
            members = sets.setdefault(line.strip(), [])
        elif line.startswith("    ") and not line.strip().startswith("#"):
            members.append(line.strip())

    def expand(name: str) -> set[str]:
        return set().union(*map(expand, sets[name])) if name.startswith("@") else {name}

    calls: set[str] = set()
    for value in values(unit, "SystemCallFilter"):
        named = set().union(*(expand(name) for name in value.lstrip("~").split()))
        calls = calls - named if value.startswith("~") else calls | named
    return calls | expand("@default")


def confinement(unit: Path) -> list[str]:
    """How a command begins that runs under the unit's filters of calls, address families and executable memory."""
    assert values(unit, "MemoryDenyWriteExecute") == ["yes"]
    families = [str(int(getattr(socket, name))) for name in values(unit, "RestrictAddressFamilies")[0].split()]
    return [sys.executable, str(_SANDBOX), ",".join(sorted(allowed_calls(unit))), ",".join(families)]
