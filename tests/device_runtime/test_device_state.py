"""What a device remembers of a round, and for how long: the state folder, deadlines, locks."""

from __future__ import annotations

import math
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from device_runtime.deadline import Clocks, Deadline, device_clock, device_start
from device_runtime.device_state import DeviceState, SpooledUpdate
from device_runtime.errors import InputError
from device_runtime.files import Lock
from device_runtime.sealed import seal


class Device:
    """A device's clocks, and a restart of it."""

    def __init__(self) -> None:
        self.device, self.wall, self.start = 1000.0, 1e9, "first"
        self.clocks = Clocks(lambda: self.device, lambda: self.wall, lambda: self.start)

    def pass_seconds(self, seconds: float) -> None:
        self.device += seconds
        self.wall += seconds

    def reboot(self, seconds: float) -> None:
        self.device, self.wall, self.start = 5.0, self.wall + seconds, "second"


def test_a_deadline_counts_on_the_device_s_clock() -> None:
    device = Device()
    deadline = Deadline.in_seconds(60.0, device.clocks)
    device.pass_seconds(59.0)
    assert deadline.left == pytest.approx(1.0)
    device.wall += 1e6  # the network told the time
    assert deadline.left == pytest.approx(1.0)
    device.pass_seconds(2.0)
    assert deadline.left == pytest.approx(-1.0)
    assert Deadline.in_seconds(None, device.clocks).left == math.inf


def test_a_deadline_outlives_the_process_whatever_the_wall_clock_does() -> None:
    device = Device()
    kept = Deadline.in_seconds(60.0, device.clocks).to_json()
    device.pass_seconds(20.0)
    device.wall -= 1e8
    assert Deadline.from_json(kept, device.clocks).left == pytest.approx(40.0)


@pytest.mark.parametrize(("gone", "left"), [(20.0, 40.0), (80.0, -20.0), (-1e8, 60.0)])
def test_a_deadline_outlives_a_reboot_by_the_wall_clock(gone: float, left: float) -> None:
    """One that has gone back, such as a board's that starts in 1970, takes nothing away."""
    device = Device()
    kept = Deadline.in_seconds(60.0, device.clocks).to_json()
    device.reboot(gone)
    assert Deadline.from_json(kept, device.clocks).left == pytest.approx(left)


def test_the_clocks_of_this_device() -> None:
    assert 0 < device_clock() <= device_clock()
    assert device_start() == device_start()
    if sys.platform == "linux":
        assert len(device_start()) == 36


def test_an_update_waits_until_it_is_settled(tmp_path: Path) -> None:
    device = Device()
    with DeviceState(tmp_path / "new" / "state", device.clocks) as state:
        assert state.update is None
        state.spool(SpooledUpdate(3, "t", Deadline.in_seconds(60.0, device.clocks), 0.1, b"\x00encoded"))
        state.progress.write_bytes(b"p")
    device.pass_seconds(10.0)
    with DeviceState(tmp_path / "new" / "state", device.clocks) as state:
        update = state.update
        assert update is not None
        assert (update.round_number, update.token, update.loss, update.data) == (3, "t", 0.1, b"\x00encoded")
        assert update.deadline.left == pytest.approx(50.0)
        state.settle()
        assert state.update is None
        assert not state.progress.exists()
        assert not state.has_given_up("t")
        state.settle("t")
        assert state.has_given_up("t")
        assert not state.has_given_up("u")


@pytest.mark.parametrize("header", [{}, {"round": "x"}, {"round": 1, "token": "t", "deadline": {}, "loss": "0x1p0"}])
def test_an_update_that_is_none(tmp_path: Path, header: dict[str, object]) -> None:
    with DeviceState(tmp_path) as state:
        seal(tmp_path / "update", header)
        assert state.update is None
        seal(tmp_path / "given-up", {})
        assert not state.has_given_up("t")


_HOLD = "import sys, time; from pathlib import Path; from device_runtime.device_state import DeviceState\n"
_HOLD += "state = DeviceState(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"


@pytest.mark.skipif(not Lock.available, reason="needs locks")
def test_one_process_at_a_time_and_the_lock_ends_with_it(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            with pytest.raises(InputError) as caught:
                DeviceState(tmp_path)
            expected = "another process of this device uses it; end that, or change --state"
            assert str(caught.value) == f"{tmp_path}: {expected}"
        finally:
            process.kill()
    with DeviceState(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_state_folder_that_can_t_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/state: can't write it: Not a directory; make room there, or change "):
        DeviceState(tmp_path / "file" / "state")


def _count(folder: str, rounds: int) -> None:
    """Take the lock, read, write and let go: what two that hold it at once would get wrong."""
    for _ in range(rounds):
        lock = Lock(Path(folder) / "lock")
        while not lock.acquire():
            os.sched_yield()
        counter = Path(folder) / "counter"
        counter.write_text(str(int(counter.read_text()) + 1))
        lock.release()


@pytest.mark.skipif(sys.platform != "linux", reason="needs locks, and processes that are forked")
def test_a_lock_that_is_removed_is_nobody_s(tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_count, args=(str(tmp_path), 300)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert (tmp_path / "counter").read_text() == "900"
