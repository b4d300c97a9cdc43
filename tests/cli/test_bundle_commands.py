"""`pocketfed inspect` and `pocketfed parity` on the digits' bundle."""

from __future__ import annotations

import json

import pytest

from cli.main import main
from device_runtime.bundle import Bundle

pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")


def test_inspect_in_json(digits_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(digits_bundle.path), "--json"]) == 0
    output = capsys.readouterr()
    inspection = json.loads(output.out)
    assert set(inspection) >= {"parameters", "operators", "flex", "custom", "files"}
    assert inspection["parameters"] == 4810
    assert inspection["examples"] == {"x": "float32[n, 8, 8, 1]", "y": "int32[n]"}
    assert (inspection["flex"], inspection["custom"]) == (0, 0)
    assert inspection["operators"]["FULLY_CONNECTED"] > 0
    assert all(isinstance(count, int) and count > 0 for count in inspection["operators"].values())
    assert not [name for name in inspection["operators"] if name.startswith("Flex")]
    for name in ("manifest.json", "train.tflite", "infer.tflite", "weights.safetensors", "golden.npz"):
        assert inspection["files"][name] == (digits_bundle.path / name).stat().st_size


def test_inspect_in_words(digits_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(digits_bundle.path.parent)]) == 0  # the folder that holds exactly one
    output = capsys.readouterr().out
    assert f"digits_mlp version 1, 4,810 parameters, identity {digits_bundle.identity}" in output
    assert "hidden/kernel" in output
    assert "float32[n, 8, 8, 1]" in output
    assert "FULLY_CONNECTED" in output
    assert "Flex operators: 0; other custom operators: 0" in output


def test_parity_in_json(digits_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", str(digits_bundle.path), "--json"]) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert set(report) >= {"ok", "steps", "max_abs", "max_rel", "tensor", "step"}
    assert (report["ok"], report["steps"], report["tensor"], report["step"]) == (True, 60, None, None)
    assert 0 <= report["max_rel"] <= 1e-4
    assert [line.split()[:2] for line in output.err.splitlines()] == [
        ["comparing", f"{n}/60"] for n in range(10, 61, 10)
    ]
