"""What the pool tells a device process, and what that answers: a line of JSON each; arrays are in shared memory."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.work import ClientWork


@dataclass(frozen=True)
class SharedArray:
    """An array whose bytes a file in shared memory holds from `offset` on."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0

    def open(self, mode: str = "r") -> npt.NDArray[Any]:
        """The array itself, without a copy; mode ``r`` or ``r+``."""
        if not math.prod(self.shape):  # nothing can't be mapped
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.path, self.dtype, mode, self.offset, self.shape)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SharedArray:
        return cls(**{**value, "shape": tuple(value["shape"])})


@dataclass(frozen=True)
class Job:
    """One client's training.

    Attributes:
        round_number: goes into the update; weights of another number are read anew.
        weights: w_t, where it starts, in the manifest's order.
        x, y: the client's examples.
        work: with the client's seed.
        delta: where the delta's numbers go, float32 [parameters], in the manifest's order; NaN if training diverged.
    """

    round_number: int
    weights: tuple[SharedArray, ...]
    x: SharedArray
    y: SharedArray
    work: ClientWork
    delta: SharedArray

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def load(cls, line: bytes) -> Job:
        value = json.loads(line)
        arrays = {name: SharedArray.from_json(value[name]) for name in ("x", "y", "delta")}
        weights = tuple(map(SharedArray.from_json, value["weights"]))
        return cls(value["round_number"], weights, work=ClientWork.from_json(value["work"]), **arrays)


@dataclass(frozen=True)
class Answer:
    """What came of it: the mean loss of all steps' examples, NaN if training diverged; or why there is nothing."""

    loss: float = math.nan
    error: str | None = None

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def load(cls, line: bytes) -> Answer:
        return cls(**json.loads(line))
