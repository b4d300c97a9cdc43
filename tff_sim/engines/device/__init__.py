"""`DeviceEngine`: rounds whose clients are trained by the exported artifact, in processes of the device's runtime.

The engine imports TensorFlow Federated, which takes seconds; the processes (`worker`) must not: so it is imported when
it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tff_sim.engines.device.engine import DeviceEngine

__all__ = ["DeviceEngine"]


def __getattr__(name: str) -> Any:
    if name != "DeviceEngine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tff_sim.engines.device.engine import DeviceEngine

    return DeviceEngine
