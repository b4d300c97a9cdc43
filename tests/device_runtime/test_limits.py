"""Limits on memory and time, and what is told as JSON."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from device_runtime.bundle import TRAIN_ARTIFACT, Bundle, Footprint
from device_runtime.cli import main
from device_runtime.codec import decode
from device_runtime.errors import InputError
from device_runtime.events import Events
from device_runtime.limits import Limits, memory_needed, over_memory, release_memory, require_memory, resident
from device_runtime.work import ClientWork

Capture = pytest.CaptureFixture[str]
MakeFile = Callable[[int, int], Path]
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells and limits a process's memory so")


def test_what_a_training_needs(digits_bundle: Bundle) -> None:
    """A step's tensors grow with the batch, the copies of the weights with the proximal term and the optimiser."""
    manifest = replace(digits_bundle.manifest, footprint=Footprint(1000, 10_000))
    base = memory_needed(manifest, ClientWork(batch_size=10), 100)
    file = manifest.files[TRAIN_ARTIFACT].size
    assert base == pytest.approx(2.5e6 + 2.2 * 101_000 + 5.5 * file + 4 * (4810 + 2 * 4096), abs=2)
    assert memory_needed(manifest, ClientWork(batch_size=20), 100) - base == pytest.approx(220_000, abs=2)
    assert memory_needed(manifest, ClientWork(batch_size=None), 15) - base == pytest.approx(110_000, abs=2)
    assert memory_needed(manifest, ClientWork(batch_size=10), 5) - base == pytest.approx(-110_000, abs=2)
    assert memory_needed(manifest, ClientWork(batch_size=10, proximal=1.0), 100) - base == pytest.approx(
        12 * 4810, abs=2
    )
    stateful = replace(manifest, optimizer_state=((64, 64), (64,), ()))
    assert memory_needed(stateful, ClientWork(batch_size=10), 100) - base == pytest.approx(4 * 4161, abs=2)


@linux
def test_a_training_that_does_not_fit_is_refused(digits_bundle: Bundle) -> None:
    manifest, work = digits_bundle.manifest, ClientWork(batch_size=None)
    needed = resident() + memory_needed(manifest, work, 30)
    require_memory(Limits(), manifest, work, 30)
    require_memory(Limits(memory=needed + 10_000_000), manifest, work, 30)
    with pytest.raises(InputError) as caught:
        require_memory(Limits(memory=12_000_000), manifest, work, 30)
    told = re.fullmatch(
        r"bundle 'digits_mlp': a training with batches of 30 needs about (\d+) MB, --max-memory allows 12",
        str(caught.value),
    )
    assert told is not None and abs(int(told.group(1)) - needed / 1e6) < 5


@linux
def test_memory_that_is_taken_and_given_back() -> None:
    before = resident()
    block = np.ones(8_000_000)
    assert resident() - before > 50_000_000
    assert over_memory(Limits(memory=before))
    assert not over_memory(Limits(memory=resident() + 10_000_000))
    assert not over_memory(Limits())
    del block
    release_memory()
    assert resident() - before < 30_000_000


@linux
@pytest.mark.parametrize("what", ["numpy.ones(40_000_000)", "[bytearray(1_000_000) for _ in range(400)]"])
def test_the_system_refuses_more_than_the_limit(what: str) -> None:
    program = f"""
import sys
import numpy
from device_runtime import cli
from device_runtime.commands import selftest
from device_runtime.limits import Limits, cap_memory, resident
def take(options):
    options.max_memory = resident() + 50_000_000
    cap_memory(Limits(memory=options.max_memory))
    kept = numpy.ones(4_000_000)
    print("32 MB fit", flush=True)
    more = {what}
selftest._selftest = take
sys.exit(cli.main(["selftest", "bundle"]))
"""
    result = subprocess.run([sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    message = "the memory that --max-memory allows is not enough; train with smaller batches or on fewer examples"
    assert (result.returncode, result.stdout) == (2, "32 MB fit\n")
    assert result.stderr == f"pocketfed-device: {message}\n"


@linux
def test_an_estimate_that_is_too_low_ends_in_a_line(
    digits_copy: Path, rehash: Callable[..., Bundle], examples_file: MakeFile, tmp_path: Path
) -> None:
    """A process of its own, whose limit is just above what it holds when it starts to train."""
    rehash(digits_copy, footprint=Footprint())
    arguments = ["train", str(digits_copy), "--data", str(examples_file(2000, 0)), "--out", str(tmp_path / "out")]
    program = f"""
import sys
from device_runtime import limits
from device_runtime.cli import main
limits.memory_needed = lambda *_: 0
held = limits.require_memory
def tight(given, *rest):
    object.__setattr__(given, "memory", limits.resident() + 500_000)
    held(given, *rest)
limits.require_memory = tight
sys.exit(main({arguments!r} + ["--batch-size", "all", "--max-memory", "1000"]))
"""
    result = subprocess.run([sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    message = "the training took more memory than --max-memory allows; name more, or a smaller batch"
    assert (result.returncode, result.stderr) == (2, f"pocketfed-device: {message}\n")
    assert not (tmp_path / "out").exists()


def test_a_training_offline_that_takes_too_long_goes_on_with_more_time(
    digits_bundle: Bundle, examples_file: MakeFile, tmp_path: Path, capsys: Capture
) -> None:
    data, out = str(examples_file(60, 0)), tmp_path / "out"
    arguments = ["train", str(digits_bundle.path), "--data", data, "--batch-size", "5", "--epochs", "60"]
    assert main([*arguments, "--out", str(tmp_path / "undisturbed")]) == 0
    capsys.readouterr()
    assert main([*arguments, "--out", str(out), "--max-seconds", "0.00001"]) == 2
    expected = "the training took longer than --max-seconds allows, 1e-05; the same command with more of them goes on"
    assert capsys.readouterr().err == f"pocketfed-device: {expected} after step 1\n"
    assert [path.name for path in tmp_path.glob("out*")] == ["out.progress"]
    assert main([*arguments, "--out", str(out), "--log-json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in told] == ["progress_restored", "progress_saved", "trained"]
    assert told[0]["steps"] == 1
    assert (told[2]["file"], told[2]["bytes"], told[2]["examples"]) == (str(out), out.stat().st_size, 60)
    assert out.read_bytes() == (tmp_path / "undisturbed").read_bytes()
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]
    manifest = digits_bundle.manifest
    assert decode(out.read_bytes(), manifest.tensors, manifest.model_id).metrics["loss"] == told[2]["loss"]


def test_events_as_lines_and_as_json() -> None:
    stream = io.StringIO()
    Events(stream=stream).tell("reported", "round 3: reported", round=3)
    Events(stream=stream).tell("progress_saved", steps=5)
    assert stream.getvalue() == "round 3: reported\n"
    stream = io.StringIO()
    Events(as_json=True, stream=stream).tell("reported", "round 3: reported", round=3, loss=float("nan"), name="ö\n")
    (line,) = stream.getvalue().splitlines()
    event = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.pop("time"))
    assert event == {"event": "reported", "round": 3, "loss": None, "name": "ö\n"}
    assert line.isascii()


def test_an_error_as_json(tmp_path: Path, capsys: Capture) -> None:
    arguments = ["train", str(tmp_path / "no"), "--data", "x", "--out", "y", "--log-json"]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    event = json.loads(captured.out)
    assert (event["event"], event["exit_code"], captured.err) == ("error", 2, "")
    assert event["message"] == f"{tmp_path / 'no'}: no such bundle; make one with 'pocketfed export'"
