"""The description of the calls at ``/openapi.json``: Schemathesis asks a real server all that it allows, and more.

Every status and every answer is as the description says, nothing fails within the server, what it declares invalid is
refused, and whoever proves nothing is told nothing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aggregation_server.access.quotas import Quotas
from aggregation_server.rounds import RoundConfig
from device_runtime import messages
from tests.aggregation_server.fleet import secret_of
from tests.aggregation_server.running import KEYS, Running

_CALLERS = {
    "anonymous": [],
    "viewer": ["--auth", f"viewer:{KEYS.viewer}"],
    "operator": ["--auth", f"operator:{KEYS.operator}"],
}


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Running]) -> Running:
    return start_server(
        RoundConfig(1, over_selection=1.0), quotas=Quotas(address_rate=0, device_rate=0, failure_rate=0)
    )


def ask(server: Running, folder: Path, *options: str) -> None:
    """Have Schemathesis ask the server, the same questions every time."""
    arguments = ["run", f"{server.url}/openapi.json", "--phases", "coverage,fuzzing", "--max-examples", "5"]
    arguments += ["--generation-deterministic", "--warnings", "off", "--no-color"]
    # A parameter that no call knows is let go by.
    (folder / "schemathesis.toml").write_text("[generation]\nallow-extra-parameters = false\n")
    done = subprocess.run(
        [str(Path(sys.executable).parent / "schemathesis"), *arguments, *options],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    operations = sum(len(path) for path in server.nobody.get("/openapi.json").json()["paths"].values())
    assert f"Selected: {operations}/{operations}" in done.stdout
    assert f"Tested: {operations}" in done.stdout


@pytest.mark.parametrize("caller", list(_CALLERS))
def test_what_a_server_answers_is_what_it_describes(server: Running, caller: str, tmp_path: Path) -> None:
    ask(server, tmp_path, *_CALLERS[caller])
    assert server.nobody.get("/healthz").status_code == 200


def test_what_a_server_answers_a_device_is_what_it_describes(server: Running, tmp_path: Path) -> None:
    server.operator.post("/v1/resume", json={})
    token = server.check_in("a")
    # A valid report is more than its description can tell: bytes that are none are refused, as they should be.
    checks = ["--exclude-checks", "positive_data_acceptance"]
    ask(server, tmp_path, "--auth", f"a:{secret_of('a')}", "--header", f"{messages.TOKEN}: {token}", *checks)
    refused = server.status()["counts"]["refused"]
    assert refused.keys() & {"truncated", "format", "checksum"}  # they came as far as that


def test_the_description_says_which_calls_are_for_everybody(server: Running) -> None:
    description = server.nobody.get("/openapi.json").json()
    assert description["components"]["securitySchemes"]["basic"]["scheme"] == "basic"
    everybody = {
        path
        for path, operations in description["paths"].items()
        for operation in operations.values()
        if "security" not in operation
    }
    assert everybody == {messages.ENROL, "/healthz", "/readyz"}
