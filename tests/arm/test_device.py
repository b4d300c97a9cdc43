"""The commands of an emulated ARM device: the same verdicts and the same training as on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from packaging.requirements import Requirement

from device_runtime.bundle import MANIFEST_SIGNATURE, Bundle, open_bundle
from device_runtime.cli import main
from device_runtime.codec import decode
from device_runtime.keys import read_private_key, write_key_pair
from device_runtime.selftest import TOLERANCE
from export.signing import sign_bundle
from tests.arm.device import ROUND_TOLERANCE, Device, Run, difference

pytestmark = pytest.mark.arm

PROCESSOR = """
import json, platform, struct, sys
print(json.dumps([platform.machine(), struct.calcsize("P"), sys.byteorder]))
"""
REQUIREMENTS = """
import json
from importlib import metadata
required = metadata.requires("pocketfed-device")
versions = {distribution.metadata["Name"].lower(): distribution.version for distribution in metadata.distributions()}
print(json.dumps([required, versions]))
"""


def test_the_processor_is_the_one_that_is_meant(device: Device, run: Run) -> None:
    expected = {"aarch64": ["aarch64", 8, "little"], "armv7": ["armv7l", 4, "little"]}
    assert json.loads(run(device.python("-c", PROCESSOR))) == expected[device.environment.machine.name]


def test_the_device_has_what_its_wheel_requires(device: Device, run: Run) -> None:
    required, versions = json.loads(run(device.python("-c", REQUIREMENTS)))
    here = {"sys_platform": "linux", "python_version": "3.11"}
    wanted = [one for one in map(Requirement, required) if one.marker is None or one.marker.evaluate(here)]
    assert {one.name for one in wanted} == {"numpy", "tflite-runtime", "cryptography"}
    assert [str(one) for one in wanted if not one.specifier.contains(versions.get(one.name, "0"))] == []


def test_the_self_test_passes(device: Device, run: Run, digits_bundle: Bundle) -> None:
    told = json.loads(run(device.command("selftest", digits_bundle.path, "--json")))
    assert (told["ok"], told["runtime"]) == (True, "tflite-runtime 2.14.0")
    assert 0 < told["max_rel"] <= TOLERANCE


def test_a_device_takes_signed_bundles_of_the_key_that_it_trusts(
    device: Device, run: Run, digits_copy: Path, tmp_path: Path
) -> None:
    for name in ("ours", "other"):
        write_key_pair(tmp_path / name, Ed25519PrivateKey.generate())
    trusting = device.command("selftest", digits_copy, "--trusted-key", tmp_path / "ours.pub")
    assert "the bundle is not signed" in run(trusting, code=4)
    keys = {name: read_private_key(tmp_path / name) for name in ("ours", "other")}
    sign_bundle(open_bundle(digits_copy), keys["other"])
    assert "which is not trusted" in run(trusting, code=4)
    sign_bundle(open_bundle(digits_copy), keys["ours"])
    assert run(trusting).startswith("self-test passed on tflite-runtime 2.14.0")
    signature = digits_copy / MANIFEST_SIGNATURE
    forged = bytearray(signature.read_bytes())
    forged[100] = ord("0") if forged[100] != ord("0") else ord("1")
    signature.write_bytes(forged)
    assert "did not sign this manifest" in run(trusting, code=4)


def test_a_round_of_training_is_this_machine_s(
    device: Device, run: Run, digits_bundle: Bundle, examples_file: Path, tmp_path: Path
) -> None:
    arguments = ["train", str(digits_bundle.path), "--data", str(examples_file), "--epochs", "2", "--seed", "5"]
    run(device.command(*arguments, "--out", tmp_path / "there"))
    assert main([*arguments, "--out", str(tmp_path / "here")]) == 0
    manifest = digits_bundle.manifest
    there, here = (
        decode((tmp_path / name).read_bytes(), manifest.tensors, manifest.model_id) for name in ("there", "here")
    )
    assert (there.weight, there.round_number) == (here.weight, here.round_number) == (23, 1)
    assert there.metrics["loss"] == pytest.approx(here.metrics["loss"], rel=ROUND_TOLERANCE)
    assert difference(there.delta, here.delta) <= ROUND_TOLERANCE
