"""Help: every command has it, and none of it loads what takes seconds, or what a server does not have."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from cli.data_options import DATASET_NAMES, PARTITION_NAMES
from cli.main import app, main
from cli.options import MODEL_NAMES
from device_runtime import __version__

HEAVY = "tensorflow tensorflow_federated fastapi sqlalchemy matplotlib sklearn numpy uvicorn tflite_runtime"
NOT_ON_A_SERVER = "models tff_sim export benchmarks"  # deploy/server/Dockerfile copies the others

COUNT_MODULES = f"""
import sys
from cli.main import main
code = main([*sys.argv[1:], "--help"])
print("loaded:", *sorted(set({f"{HEAVY} {NOT_ON_A_SERVER}"!r}.split()) & set(sys.modules)))
sys.exit(code)
"""


@pytest.mark.parametrize(
    "command",
    [
        *("demo", "data", "simulate", "sweep", "reproduce", "worker", "export", "parity", "inspect"),
        *("keygen", "sign", "verify", "flash", "serve", "bench"),
        *("enrol", "revoke", "devices", "rounds", "pause", "resume", "rollback", "release"),
    ],
)
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command in app.commands
    assert main([command, "--help"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith(f"Usage: pocketfed {command}")
    assert output.err == ""


def test_help_lists_all_commands_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    for name, command in app.commands.items():
        assert f"  {name} " in output
        assert command.get_short_help_str(80) in output
    assert "Exit codes: 0 done, 1 a check failed, 2 wrong usage or input" in output


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pocketfed, version {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["simulate"], ["sweep"], ["reproduce"], ["serve"], ["enrol"]])
def test_help_loads_nothing_heavy_and_nothing_a_server_lacks(arguments: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", COUNT_MODULES, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "loaded:"


@pytest.mark.parametrize("command", ["info", "partition", "export"])
def test_help_names_all_data_sets_and_partitions(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    from tff_sim import datasets
    from tff_sim.partition import SCHEMES

    assert (*datasets.NAMES, datasets.PACKED) == DATASET_NAMES
    assert tuple(SCHEMES) == PARTITION_NAMES
    assert main(["data", command, "--help"]) == 0
    text = re.sub(r"-\n\s+", "-", capsys.readouterr().out)  # lines are broken at hyphens, too
    assert set(re.split(r"[\s,.;]+", text)) >= {*DATASET_NAMES, *PARTITION_NAMES}


@pytest.mark.filterwarnings("ignore")  # importing TensorFlow 2.14 gives warnings of its dependencies
def test_help_names_the_registry_s_models(capsys: pytest.CaptureFixture[str]) -> None:
    import models

    assert models.names() == MODEL_NAMES
    for command in ("export", "simulate"):
        assert main([command, "--help"]) == 0
        output = capsys.readouterr().out
        assert all(name in output for name in MODEL_NAMES)
