"""Nothing that devices, operators, time, disks and kills do in any order breaks what holds of rounds (`machine`)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from aggregation_server.rounds import RoundConfig
from aggregation_server.task import Task
from device_runtime.bundle import Bundle
from tests.aggregation_server.fleet import Fleet
from tests.aggregation_server.machine import NAMES, ServerMachine, Template


@pytest.fixture
def template(bundle: Bundle, make_report: Callable[..., bytes], tmp_path: Path) -> Template:
    folder = tmp_path / "template"
    folder.mkdir()
    url = f"sqlite:///{folder / 'server.db'}"
    fleet = Fleet(bundle, Task(RoundConfig(1)), url, folder / "spool", [0.0], make_report)
    fleet.enrol(*NAMES)
    fleet.close()
    return Template(bundle, make_report, folder)


def test_whatever_happens_what_was_accepted_counts_once(template: Template, in_memory: Path) -> None:
    runs = count()

    def machine() -> ServerMachine:
        return ServerMachine(template, in_memory / str(next(runs)))

    steps = settings(max_examples=40, stateful_step_count=40, derandomize=True)
    # It calls what it is given, a class or not.
    run_state_machine_as_test(machine, settings=steps)  # type: ignore[arg-type]
