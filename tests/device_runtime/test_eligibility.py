"""Whether a device may train: each probe on trees as kernels show them, and what an app says."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from device_runtime.eligibility.by_app import ConditionsFile, SetByApp
from device_runtime.eligibility.conditions import Conditions, Measured, Reading, unknown
from device_runtime.eligibility.load import Load
from device_runtime.eligibility.network import Network, parse_busctl, parse_nmcli
from device_runtime.eligibility.power import Power
from device_runtime.eligibility.temperature import Temperature

Tree = Callable[[dict[str, str]], Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """`tree(files)`: a folder with these files, as sysfs shows them: a line each."""

    def make(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / "tree" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return tmp_path / "tree"

    return make


def supply(name: str, **properties: str) -> dict[str, str]:
    return {f"{name}/{key}": value for key, value in properties.items()}


LAPTOP_AC = supply("AC", type="Mains", online="1")
LAPTOP_NO_AC = supply("AC", type="Mains", online="0")
MOUSE = supply("hid-34:88:5d:00:11:22-battery", type="Battery", scope="Device", present="1", status="Discharging")


def battery(status: str, name: str = "BAT0", **more: str) -> dict[str, str]:
    return supply(name, type="Battery", present="1", status=status, capacity="57", technology="Li-ion", **more)


@pytest.mark.parametrize(
    ("files", "value", "unmet"),
    [
        ({}, "no battery", None),
        (LAPTOP_AC, "no battery", None),
        (MOUSE, "no battery", None),
        ({**LAPTOP_AC, **battery("Charging")}, "BAT0 charging", None),
        ({**LAPTOP_AC, **battery("Full")}, "BAT0 full", None),
        ({**LAPTOP_AC, **battery("Not charging"), **MOUSE}, "BAT0 not charging", None),
        ({**LAPTOP_NO_AC, **battery("Discharging")}, "BAT0 discharging", "on battery"),
        ({**LAPTOP_NO_AC, **battery("Full")}, "BAT0 full", "on battery"),
        (battery("Discharging"), "BAT0 discharging", "on battery"),
        (battery("Charging"), "BAT0 charging", None),
        (
            {**LAPTOP_NO_AC, **battery("Unknown"), **battery("Discharging", "BAT1")},
            "BAT0 unknown, BAT1 discharging",
            "on battery",
        ),
        ({**LAPTOP_AC, **battery("Unknown")}, "BAT0 unknown", None),
        ({**LAPTOP_AC, **battery("Charging"), **battery("Unknown", "BAT1")}, "BAT0 charging, BAT1 unknown", None),
        # a phone's SoC: a weak charger does not keep up with the load
        ({**supply("usb", type="USB", online="1"), **battery("Discharging", "bms")}, "bms discharging", "on battery"),
        # USB-C with a programmable voltage, and a second port without a cable
        (
            {
                **supply("ucsi-1", type="USB", online="0", usb_type="[C] PD"),
                **supply("ucsi-2", type="USB", online="2", usb_type="C [PD]"),
                **battery("Charging"),
            },
            "BAT0 charging",
            None,
        ),
        (supply("ups", type="UPS", status="Discharging", present="1"), "ups discharging", "on battery"),
        ({**LAPTOP_NO_AC, **supply("BAT1", type="Battery", present="0")}, "no battery", None),
    ],
)
def test_power(tree: Tree, files: dict[str, str], value: str, unmet: str | None) -> None:
    assert Power(tree(files)).read() == Reading(value, unmet)


def test_a_battery_that_says_nothing(tree: Tree) -> None:
    assert Power(tree(battery("Unknown"))).read() == unknown("whether the battery is charging")


def test_a_kernel_without_power_supplies(tmp_path: Path) -> None:
    assert Power(tmp_path / "no").read() == Reading("no battery")


RASPBERRY_PI = {"thermal_zone0/type": "cpu-thermal", "thermal_zone0/temp": "48312"}
ROCK = {
    "thermal_zone0/type": "soc-thermal", "thermal_zone0/temp": "43125",
    "thermal_zone1/type": "bigcore0-thermal", "thermal_zone1/temp": "71000",
    "thermal_zone2/type": "npu-thermal", "thermal_zone2/temp": "-274000",
    "cooling_device0/type": "pwm-fan", "cooling_device0/cur_state": "0",
}  # fmt: skip


@pytest.mark.parametrize(
    ("files", "limit", "reading"),
    [
        (RASPBERRY_PI, 70, Reading("48 °C")),
        (RASPBERRY_PI, 48, Reading("48 °C", "too hot: 48 °C")),
        (ROCK, 71, Reading("71 °C")),
        (ROCK, 70, Reading("71 °C", "too hot: 71 °C")),
        ({"thermal_zone0/temp": ""}, 70, unknown("the temperature")),
        ({"thermal_zone0/type": "acpitz"}, 70, unknown("the temperature")),
        ({}, 70, unknown("the temperature")),
    ],
)
def test_temperature(tree: Tree, files: dict[str, str], limit: float, reading: Reading) -> None:
    assert Temperature(limit, tree(files)).read() == reading


class Board:
    """A board with two processors, whose ``/proc/stat`` and whose time the test moves on."""

    def __init__(self, folder: Path) -> None:
        self.stat = folder / "stat"
        self.seconds = self.own = self.others = 0.0
        self.slept: list[float] = []
        self.pass_time(100)

    def pass_time(self, seconds: float, own: float = 0.0, others: float = 0.0) -> None:
        self.seconds, self.own, self.others = self.seconds + seconds, self.own + own, self.others + others
        tick = os.sysconf("SC_CLK_TCK")
        user, nice, system = (int(part * tick) for part in (self.own, self.others / 2, self.others / 2))
        idle = int(2 * self.seconds * tick) - user - nice - system
        self.stat.write_text(
            f"cpu  {user} {nice} {system} {idle} 1532 0 0 77 0 0\n"
            f"cpu0 {user} {nice} 0 {idle // 2} 1000 0 0 40 0 0\n"
            f"cpu1 0 0 {system} {idle // 2} 532 0 0 37 0 0\n"
            "intr 9812 0 17 0\nctxt 66021\nbtime 1764080000\nprocesses 4242\nprocs_running 3\nprocs_blocked 0\n"
        )

    def load(self, limit: float) -> Load:
        return Load(limit, self.stat, lambda: self.own, lambda: self.seconds, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.pass_time(seconds, own=seconds / 2)


def test_one_s_own_training_is_no_load(tmp_path: Path) -> None:
    board = Board(tmp_path)
    load = board.load(0.3)
    assert load.read() == Reading("load 0.0 on 2 processors")
    board.pass_time(1, own=2)
    assert load.read() == Reading("load 0.0 on 2 processors")
    board.pass_time(1, own=1.5, others=0.5)
    assert load.read() == Reading("load 0.5 on 2 processors")
    board.pass_time(1, own=1, others=1)
    assert load.read() == Reading("load 1.0 on 2 processors", "busy: load 1.0 on 2 processors")
    board.pass_time(1, own=2.01)  # its clock is finer than the ticks
    assert load.read() == Reading("load 0.0 on 2 processors")
    assert load.read() == Reading("load 0.0 on 2 processors")  # in no time at all
    assert board.slept == [0.25]


def test_a_pause_is_not_averaged_in(tmp_path: Path) -> None:
    board = Board(tmp_path)
    load = board.load(0.3)
    load.read()
    board.pass_time(60, others=110)
    assert load.read() == Reading("load 0.0 on 2 processors")
    assert board.slept == [0.25, 0.25]


@pytest.mark.parametrize("text", ["", "cpu  1 2\n", "cpu  1 2 3 4 5 6 7\n", "cpu  a b c d e f g\ncpu0 1\n"])
def test_a_stat_that_is_not_understood(tmp_path: Path, text: str) -> None:
    (tmp_path / "stat").write_text(text)
    assert Load(0.3, tmp_path / "stat").read() == unknown("the load")
    assert Load(0.3, tmp_path / "no").read() == unknown("the load")


def _spin() -> None:
    while True:
        pass


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the kernel is another one")
def test_another_process_makes_load_here() -> None:
    busy = multiprocessing.get_context("spawn").Process(target=_spin, daemon=True)
    busy.start()
    try:
        load, end = Load(0.0001, sleep=lambda _: time.sleep(0.5)), time.monotonic() + 60
        while (reading := load.read()).unmet is None and time.monotonic() < end:
            time.sleep(0.5)
        assert reading.unmet is not None
        assert reading.unmet.startswith("busy: load ")
    finally:
        busy.kill()
        busy.join()


@pytest.mark.parametrize(
    ("output", "metered"),
    [("u 0\n", None), ("u 1\n", True), ("u 2\n", False), ("u 3\n", True), ("u 4\n", False), ("", None), ("s x", None)],
)
def test_what_busctl_says(output: str, metered: bool | None) -> None:
    assert parse_busctl(output) is metered


@pytest.mark.parametrize(
    ("output", "metered"),
    [
        ("GENERAL.METERED:no\n\nGENERAL.METERED:unknown\n", False),
        ("GENERAL.METERED:no (guessed)\n\nGENERAL.METERED:unknown\n", False),
        ("GENERAL.METERED:yes (guessed)\n\nGENERAL.METERED:no\n", True),
        ("GENERAL.METERED:yes\n", True),
        ("GENERAL.METERED:unknown\n\nGENERAL.METERED:unknown\n", None),
        ("Error: NetworkManager is not running.\n", None),
        ("", None),
    ],
)
def test_what_nmcli_says(output: str, metered: bool | None) -> None:
    assert parse_nmcli(output) is metered


def test_a_board_without_network_manager(tmp_path: Path) -> None:
    nothing = {"PATH": str(tmp_path), "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={tmp_path / 'no'}"}
    assert Network(nothing).read() == unknown("whether the network is metered")
    assert Network({**os.environ, **nothing, "PATH": os.environ["PATH"]}).read().known is False


def test_a_program_that_hangs_is_given_up(tmp_path: Path) -> None:
    program = tmp_path / "busctl"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    (tmp_path / "nmcli").write_text("#!/bin/sh\necho GENERAL.METERED:yes\n")
    (tmp_path / "nmcli").chmod(0o755)
    started = time.monotonic()
    assert Network({"PATH": f"{tmp_path}:/usr/bin:/bin"}).read() == Reading("metered", "metered network")
    assert time.monotonic() - started < 30


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Scripted:
    """A probe whose readings are given."""

    def __init__(self, name: str, *readings: Reading, seconds: float = 1.0) -> None:
        self.name, self.seconds, self.readings = name, seconds, list(readings)

    def read(self) -> Reading:
        return self.readings.pop(0)


def test_readings_hold_for_a_while() -> None:
    clock, on_battery = Clock(), Reading("b", "on battery")
    conditions = Measured([Scripted("charging", Reading("c"), on_battery, Reading("c"))], clock=clock)
    answers = []
    for clock.now in (0.0, 0.9, 1.0, 1.9, 2.0, 2.9):
        answers.append(conditions.unmet())
    assert answers == [None, None, "on battery", "on battery", None, None]


def test_the_first_reason_counts() -> None:
    probes = [Scripted("idle", Reading("i")), Scripted("charging", Reading("b", "on battery"))]
    conditions = Measured([*probes, Scripted("cool", Reading("h", "too hot"))])
    assert conditions.unmet() == "on battery"
    assert list(conditions.readings()) == ["idle", "charging", "cool"]
    assert Measured([]).unmet() is None


@pytest.mark.parametrize("train", [True, False])
def test_what_is_unknown(train: bool) -> None:
    probes = [Scripted("unmetered", unknown("whether the network is metered")), Scripted("cool", Reading("ok"))]
    expected = None if train else "whether the network is metered is not known"
    assert Measured(probes, train_when_unknown=train).unmet() == expected


def test_an_app_that_says_it_in_this_process() -> None:
    conditions = SetByApp()
    assert conditions.unmet() == "in use"
    conditions.set(idle=True, charging=True)
    assert conditions.unmet() == "metered network"
    conditions.set(unmetered=True, cool=True)
    assert conditions.unmet() is None
    conditions.set(charging=False)
    assert conditions.unmet() == "on battery"
    assert SetByApp(["cool"]).unmet() == "too hot"
    assert SetByApp([]).unmet() is None


def test_what_an_app_sets_at_once_is_seen_at_once() -> None:
    conditions, over = SetByApp(["charging", "cool"]), threading.Event()
    conditions.set(charging=True, cool=False)

    def swap() -> None:
        while not over.is_set():
            conditions.set(charging=False, cool=True)
            conditions.set(charging=True, cool=False)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        assert {conditions.unmet() for _ in range(20_000)} <= {"on battery", "too hot"}
    finally:
        over.set()
        thread.join()


@pytest.fixture
def said(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "conditions.json"


def test_an_app_that_says_it_in_a_file(said: Path) -> None:
    clock = Clock()
    conditions: Conditions = ConditionsFile(said, ["charging", "cool"], clock)

    def say(content: object) -> str | None:
        fresh = said.with_suffix(".new")
        fresh.write_text(json.dumps(content))
        fresh.replace(said)
        clock.now += 1
        return conditions.unmet()

    assert conditions.unmet() == f"{said}: No such file or directory"
    assert say({"charging": True, "cool": True, "idle": False, "more": 3}) is None
    assert say({"charging": True}) == "too hot"
    assert say({"charging": False, "cool": True}) == "on battery"
    wrong = f'{said}: expected a JSON object such as {{"idle": true}}'
    assert say({"charging": "yes", "cool": True}) == wrong
    assert say([]) == wrong
    assert say({"charging": True, "cool": True, "filler": "x" * 70_000}) == wrong
    for data in (b"{", b"\xff", b"[" * 60_000):
        said.write_bytes(data)
        clock.now += 1
        assert conditions.unmet() == wrong
    said.unlink()
    assert conditions.unmet() == wrong  # until a second has passed
