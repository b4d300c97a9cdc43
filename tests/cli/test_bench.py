"""`pocketfed bench`, quickly: what it prints, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest

import benchmarks.codec
import benchmarks.device
import benchmarks.export
import benchmarks.server.suite
import benchmarks.simulate
from benchmarks.result import Result
from cli.fleet import command
from cli.main import main

Capture = pytest.CaptureFixture[str]

NAMES = (
    "cnn_step_vs_pytorch",
    "cnn_step_2threads_vs_flex",
    "mlp_step_vs_pytorch",
    "lstm_step_vs_tensorflow",
    "lstm_export_seconds",
    "cnn_train_peak_mb",
)


CODEC_FAMILIES = (
    "nmse_vs_eden_qN",
    "nmse_vs_eden_mlp_qN",
    "bytes_qN",
    "encode_vs_step_qN",
    "encode_vs_step",
    "decode_add_vs_plain_qN",
    "encode_extra_memory_qN",
)
CODEC_NAMES = tuple(
    family.replace("N", number) for family in CODEC_FAMILIES for number in ("8421" if family.endswith("N") else "_")
)


SIMULATE_NAMES = (
    "mlp_round_vs_stock_tff",
    "cnn_round_vs_stock_tff",
    "mlp_round_peak_mb",
    "mlp_round_device_vs_stock_tff",
    "cnn_round_device_vs_stock_tff",
    "mlp_round_device_peak_mb",
)


SERVER_NAMES = (
    "reports_per_second_mlp_q4",
    "reports_per_second_cnn_q8",
    "checkins_per_second",
    "checkin_p99_ms",
    "server_peak_mb",
    "idle_connections",
)


def test_names_that_other_programs_rely_on(capsys: Capture) -> None:
    assert benchmarks.export.NAMES == NAMES
    assert main(["bench", "export", "--help"]) == 0
    output = capsys.readouterr().out
    assert all(f"  {name} " in output for name in NAMES)


def test_the_page_on_performance_names_them_all() -> None:
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
    named = tuple(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    # What each is, and what it measured; of the device's and the codec's both at once.
    assert named == (*NAMES * 2, *benchmarks.device.NAMES, *CODEC_FAMILIES, *SIMULATE_NAMES, *SERVER_NAMES)


def test_names_of_the_simulation_s(capsys: Capture) -> None:
    assert benchmarks.simulate.NAMES == SIMULATE_NAMES
    assert main(["bench", "simulate", "--help"]) == 0
    output = capsys.readouterr().out
    assert all(re.search(rf"^  {name}( |$)", output, re.MULTILINE) for name in SIMULATE_NAMES)
    assert main(["bench", "simulate", "mlp"]) == 2
    known = ", ".join(SIMULATE_NAMES)
    assert capsys.readouterr().err.strip() == f"pocketfed: unknown benchmark 'mlp'; known are {known}"


def test_a_server_under_load_quickly(capsys: Capture) -> None:
    assert benchmarks.server.suite.NAMES == SERVER_NAMES
    assert main(["bench", "server", "--help"]) == 0
    output = capsys.readouterr().out
    assert all(f"  {name} " in output for name in SERVER_NAMES)
    assert main(["bench", "server", "reports"]) == 2
    known = ", ".join(SERVER_NAMES)
    assert capsys.readouterr().err.strip() == f"pocketfed: unknown benchmark 'reports'; known are {known}"
    assert main(["bench", "server", SERVER_NAMES[0], "--quick", "--json"]) == 0
    (reports,) = json.loads(capsys.readouterr().out)
    assert (reports["name"], reports["unit"]) == (SERVER_NAMES[0], "1/s")
    assert reports["reference"] == "a bare ASGI endpoint, write and fsync"
    assert reports["value"] > 0
    assert reports["note"].startswith("rounds of 50 reports of 102779 bytes, with their commit; all turns ")


@pytest.mark.skipif(importlib.util.find_spec("tensorflow_federated") is None, reason="TFF is not installed")
def test_simulated_rounds_quickly(tmp_path: Path, capsys: Capture) -> None:
    assert main(["bench", "simulate", "--data-dir", str(tmp_path / "none")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err.splitlines()[-1]
    names = ["mlp_round_device_vs_stock_tff", "mlp_round_peak_mb"]
    # In a process of its own: the memory is that of all its children, of which the tests' process has others.
    arguments = [command("pocketfed"), "bench", "simulate", *names, "--quick", "--json"]
    run = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, timeout=300, text=True)
    rounds, memory = json.loads(run.stdout)
    assert (rounds["name"], rounds["unit"]) == (names[0], "s")
    assert rounds["value"] > 0
    assert rounds["note"].startswith("10 of 100 clients × 600 embedded digits enlarged to 28×28, E = 1, B = 10")
    assert (memory["name"], memory["unit"], memory["reference"]) == (names[1], "MB", "fixed, 900 MB")
    assert 300 < memory["value"] < 2000  # TensorFlow alone takes the least, and no machine the most


def test_what_a_device_says_it_needs(capsys: Capture) -> None:
    assert main(["bench", "device", "--help"]) == 0
    output = capsys.readouterr().out
    assert all(f"  {name} " in output for name in benchmarks.device.NAMES)
    assert main(["bench", "device", "digits_mlp_memory", "--quick", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert (result["name"], result["unit"], result["reference"]) == ("digits_mlp_memory", "MB", "what it takes")
    assert 0.8 < result["ratio"] < 1.25
    assert main(["bench", "device", "speed"]) == 2
    known = "kills_survived, digits_mlp_memory, mnist_2nn_memory, mnist_cnn_memory, shakespeare_lstm_memory"
    assert capsys.readouterr().err.endswith(f"unknown benchmark 'speed'; known are {known}\n")


def test_quick_run_in_json_and_into_a_file(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "bench.json"
    names = ["cnn_step_2threads_vs_flex", "cnn_train_peak_mb"]
    assert main(["bench", "export", *names, "--quick", "--json", "--out", str(out)]) == 0
    output = capsys.readouterr()
    results = json.loads(output.out)
    assert json.loads(out.read_text(encoding="utf-8")) == results
    assert [result["name"] for result in results] == names
    for result in results:
        assert set(result) == {"name", "value", "unit", "reference", "reference_value", "ratio"}
        assert result["value"] > 0
        assert result["ratio"] == pytest.approx(result["value"] / result["reference_value"])
    assert [result["unit"] for result in results] == ["ms", "MB"]
    assert output.err.splitlines()[0] == f"measuring 0/2  {names[0]}"


def test_names_of_the_codec_s(capsys: Capture) -> None:
    assert benchmarks.codec.NAMES == CODEC_NAMES
    assert main(["bench", "codec", "--help"]) == 0
    output = capsys.readouterr().out
    assert all(f"  {name} " in output for name in CODEC_FAMILIES)


def test_quick_run_of_the_codec_s(tmp_path: Path, capsys: Capture) -> None:
    names = ["nmse_vs_eden_q1", "bytes_q8", "encode_vs_step_q8", "decode_add_vs_plain_q2", "encode_extra_memory_q4"]
    assert main(["bench", "codec", *names, "--quick", "--json"]) == 0
    output = capsys.readouterr()
    results = {result["name"]: result for result in json.loads(output.out)}
    assert list(results) == names
    for result in results.values():
        assert set(result) - {"note"} == {"name", "value", "unit", "reference", "reference_value", "ratio"}
        assert result["value"] > 0
    error = results["nmse_vs_eden_q1"]
    assert 0.5 < error["ratio"] < 2
    assert error["note"].startswith("5 of 100 clients × 14 embedded digits enlarged to 28×28; ")
    assert results["bytes_q8"]["ratio"] <= 0.254
    assert results["encode_extra_memory_q4"]["ratio"] <= 1
    assert [result["unit"] for result in results.values()] == ["NMSE", "MB", "ms", "ms", "MB"]
    assert "measuring 0/5  exporting mnist_cnn" in output.err


def test_wrong_arguments_of_the_codec_s(tmp_path: Path, capsys: Capture) -> None:
    assert main(["bench", "codec", "nmse"]) == 2
    told = capsys.readouterr().err.strip()
    assert told == f"pocketfed: unknown benchmark 'nmse'; known are {', '.join(CODEC_NAMES)}"
    assert main(["bench", "codec", "bytes_q8", "--data-dir", str(tmp_path / "none")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err.splitlines()[-1]
    assert main(["bench", "codec", "--out", str(tmp_path)]) == 2
    assert "change --out" in capsys.readouterr().err


def test_table(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    result = Result("cnn_train_peak_mb", 90.0, "MB", "fixed, 60 MB", 60.0, "on a busy machine")
    monkeypatch.setattr(benchmarks.export, "run_export_benchmarks", lambda names, quick, progress: [result])
    assert main(["bench", "export"]) == 0
    row, note = [line for line in capsys.readouterr().out.splitlines() if "cnn_train_peak_mb" in line]
    assert note == "cnn_train_peak_mb: on a busy machine"
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "cnn_train_peak_mb", "90 MB", "fixed, 60 MB", "60 MB", "1.50"
    ]  # fmt: skip


def test_without_pytorch_the_message_names_the_make_target(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks.export, "PYTORCH", tmp_path / "python")
    assert main(["bench", "export"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines()[-1] == (
        f"pocketfed: {tmp_path / 'python'}: PyTorch's environment is missing; 'make bench-setup' installs it"
    )
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    assert "\nbench-setup:" in makefile


def test_unknown_name(capsys: Capture) -> None:
    assert main(["bench", "export", "cnn_step"]) == 2
    assert capsys.readouterr().err.strip() == (f"pocketfed: unknown benchmark 'cnn_step'; known are {', '.join(NAMES)}")


def test_a_file_that_can_t_be_written_is_told_before_measuring(tmp_path: Path, capsys: Capture) -> None:
    for out in (tmp_path, tmp_path / "none" / "bench.json"):
        assert main(["bench", "export", "--out", str(out)]) == 2
        assert capsys.readouterr().err == (
            f"pocketfed: {out}: can't write it: it is a folder, or in none; change --out\n"
        )
