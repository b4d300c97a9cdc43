"""Every codec, byte for byte: what an ARM device encodes and decodes is what this machine does."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from device_runtime.bundle import Bundle
from device_runtime.codec import CODECS
from device_runtime.examples import Examples
from device_runtime.tensors import Weights
from device_runtime.trainer import Trainer
from device_runtime.work import ClientWork
from tests.arm.device import Device, Run

pytestmark = pytest.mark.arm

SCRIPT = Path(__file__).with_name("vectors.py")


def _trained(bundle: Bundle, examples: Examples) -> Weights:
    """The delta of a round."""
    return Trainer(bundle).train(bundle.initial_weights(), examples, ClientWork(epochs=2), 1).collect().delta


def _extreme(kind: str) -> Weights:
    """Values that processors treat differently, if anything."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(1537).astype(np.float32)
    if kind == "subnormal":
        return (normal * np.float32(1e-41), normal * np.float32(1e-38))
    if kind == "small":  # about as large as the smallest that is not taken for zero
        return (normal * np.float32(2.0**-59), normal.reshape(-1, 29) * np.float32(2.0**-62))
    if kind == "sparse":
        return (np.zeros(70_000, np.float32), np.array([np.finfo(np.float32).smallest_subnormal, 1.5], np.float32))
    return (  # mixed: subnormal, large, of both signs; and odd sizes
        normal,
        normal.reshape(-1, 29) * np.float32(1e-41),
        normal * np.float32(2.0**50),
        normal * np.exp2(rng.integers(-120, 50, normal.size)).astype(np.float32),
        np.zeros(600, np.float32),
        np.full(5, -0.0, np.float32),
        np.array(-3.25, np.float32),
        np.array([np.finfo(np.float32).smallest_subnormal], np.float32),
        rng.standard_normal((3, 5, 7, 11)).astype(np.float32).transpose(3, 1, 0, 2),
    )


@pytest.mark.parametrize("kind", ["trained", "mixed", "subnormal", "small", "sparse"])
def test_a_device_encodes_and_decodes_the_same_bytes(
    kind: str,
    device: Device,
    run: Run,
    digits_bundle: Bundle,
    digits_examples: Callable[[int, int], Examples],
    tmp_path: Path,
) -> None:
    delta = _trained(digits_bundle, digits_examples(57, 1)) if kind == "trained" else _extreme(kind)
    np.savez(tmp_path / "delta.npz", **{f"w{index}": tensor for index, tensor in enumerate(delta)})
    script = shutil.copy(SCRIPT, tmp_path)  # away from the checkout
    run([sys.executable, str(script), "delta.npz", "--out", "here"])
    run(device.python(script, "delta.npz", "--out", "there", "--decode", "here"))
    written = {f"{name}.{content}" for name in CODECS for content in ("update", "values")}
    assert {path.name for path in (tmp_path / "there").iterdir()} == written
    different = [name for name in sorted(written) if not _same(tmp_path / "here" / name, tmp_path / "there" / name)]
    assert different == []


def _same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()
