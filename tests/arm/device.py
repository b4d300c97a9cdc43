"""An emulated device, and by how much a round that it trains may differ from this machine's."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from device_runtime.tensors import Weights
from tests.arm.environment import Environment

SECONDS = 300

# Of `difference`, for a delta of two epochs of three steps. Measured: at most 2.1e-6 on aarch64 and 2.3e-6 on armv7 for
# 20 sets of examples, and 1e-6 in half of them. It is rounding: the processors sum in another order, and a delta is the
# small difference of two weights. A kernel that is wrong is off by 1e-2 and more.
ROUND_TOLERANCE = 1e-5


def difference(got: Weights, want: Weights) -> float:
    """Largest |got − want| over the largest |want| of a tensor; the largest of all tensors."""
    return max(float(np.abs(g - w).max() / np.abs(w).max()) for g, w in zip(got, want, strict=True))


@dataclass(frozen=True)
class Device:
    """An emulated device: `environment`, and `packages` with the wheel and its program."""

    environment: Environment
    packages: Path

    def command(self, *arguments: object) -> list[str]:
        """``pocketfed-device`` with these arguments, for a process of its own."""
        return self.python(self.packages / "bin" / "pocketfed-device", *arguments)

    def python(self, *arguments: object) -> list[str]:
        """Python with these arguments; it finds the wheel, and nothing of this checkout."""
        return self.environment.command(*arguments, path=[self.packages])


@dataclass(frozen=True)
class Run:
    """`run(command)`: its standard output, or a failure with its standard error."""

    folder: Path

    def __call__(self, command: list[str], code: int = 0) -> str:
        result = subprocess.run(
            command, cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )  # fmt: skip
        assert result.returncode == code, result.stderr
        return result.stdout if code == 0 else result.stderr
