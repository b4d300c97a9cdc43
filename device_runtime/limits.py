"""What a device may spend on a round: memory and time.

The need for memory is estimated from the manifest before an artifact is loaded. The factors are measured,
for tflite-runtime 2.14 (docs/performance.md), and err on the side of too much. What was estimated too low meets a hard
limit of the system, which makes an allocation fail instead of driving the device into its swap.
"""

from __future__ import annotations

import ctypes
import math
import os
from dataclasses import dataclass
from pathlib import Path

from device_runtime.bundle import TRAIN_ARTIFACT, Manifest
from device_runtime.errors import InputError
from device_runtime.work import ClientWork

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_MB = 1e6
_PER_STEP_BYTE = 2.2  # an interpreter's plan has gaps, grows by copying, and its kernels have room of their own
_PER_FILE_BYTE = 5.5  # the artifact's operators, as an interpreter keeps them
_LOADED = 2_500_000  # modules that are loaded on the way
_RESERVED = 32_000_000  # stacks and heaps that count for the system's limit, and are not in use
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Limits:
    """`memory` in bytes, and `seconds` of training in a round; None is no limit."""

    memory: int | None = None
    seconds: float | None = None


def memory_needed(manifest: Manifest, work: ClientWork, examples: int) -> int:
    """About the bytes that a process needs for this training, beside what it holds before it loads the artifact."""
    batch = min(work.batch_size or examples, examples)
    step = manifest.footprint.fixed + manifest.footprint.per_example * batch
    copies = 4 if work.proximal > 0 else 1  # the proximal term has a centre and a pull, and what they are made of
    largest = max((variable.size for variable in manifest.variables), default=0)
    state = sum(map(math.prod, manifest.optimizer_state))
    variables = 4 * (manifest.parameters * copies + state + 2 * largest)  # one goes in and one out
    return int(_LOADED + _PER_STEP_BYTE * step + _PER_FILE_BYTE * manifest.files[TRAIN_ARTIFACT].size + variables)


def require_memory(limits: Limits, manifest: Manifest, work: ClientWork, examples: int) -> None:
    """Refuse a training that can't fit.

    Raises:
        InputError: it needs more than the limit.
    """
    if limits.memory is None:
        return
    needed = resident() + memory_needed(manifest, work, examples)
    if needed > limits.memory:
        raise InputError(
            f"bundle {manifest.name!r}: a training with batches of {min(work.batch_size or examples, examples)} needs"
            f" about {needed / _MB:.0f} MB, --max-memory allows {limits.memory / _MB:.0f}"
        )


def cap_memory(limits: Limits) -> None:
    """Have the system refuse this process more memory than the limit, from here on."""
    if limits.memory is None or resource is None:
        return
    data = _status("VmData")
    if data:
        cap = data + max(limits.memory - resident(), 0) + _RESERVED
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (cap if hard == resource.RLIM_INFINITY else min(cap, hard), hard))


def over_memory(limits: Limits) -> bool:
    """Whether this process holds more than the limit."""
    return limits.memory is not None and resident() > limits.memory


def release_memory() -> None:
    """Give back to the system what was freed: the C library keeps it where it can't know that it is over."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, TypeError, AttributeError):  # another C library, which does as it likes
        return


def resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _status(name: str) -> int:
    """A field of /proc/self/status in bytes; 0 where there is none."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
