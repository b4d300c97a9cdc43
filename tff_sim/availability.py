"""Whether TensorFlow Federated can run here; it has wheels for Linux on x86-64 only."""

from __future__ import annotations

import importlib.util
import platform
import sys

from tff_sim.errors import UnavailableError


def require_tff() -> None:
    """Raise `UnavailableError`, with the reason, where TensorFlow Federated is not installed."""
    if importlib.util.find_spec("tensorflow_federated") is not None:
        return
    if sys.platform == "linux" and platform.machine() == "x86_64":
        raise UnavailableError("simulation needs TensorFlow Federated, which is not installed: run 'make setup'")
    raise UnavailableError(
        "simulation needs TensorFlow Federated, which is available for Linux on x86-64 only, not for"
        f" {platform.system()} on {platform.machine()}; export, parity, server and devices work here"
    )
