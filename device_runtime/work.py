"""`ClientWork`: what one client is asked to do in one round."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.errors import InputError
from device_runtime.plain import make_plain

SEED_BITS = 53  # the integers that JSON carries exactly in every language


@dataclass(frozen=True)
class ClientWork:
    """The client's part of FederatedAveraging (McMahan et al. 2017, Algorithm 1, ClientUpdate).

    Attributes:
        epochs: E, passes over the local examples; at least 1.
        batch_size: B, below 2**31; None is the paper's B = ∞, the whole local set as one batch.
        learning_rate: η of the local SGD.
        proximal: μ of FedProx's term μ/2·‖w − w_t‖² (Li et al. 2020); 0 is plain FedAvg.
        seed: of the batch order and of the codec's rounding; 0 ≤ seed < 2**53.
        codec: how the update is encoded, one of `device_runtime.codec.CODECS`.
        deadline_seconds: how long after the configuration a report still counts; None is no limit.
    """

    epochs: int = 1
    batch_size: int | None = 10
    learning_rate: float = 0.1
    proximal: float = 0.0
    seed: int = 0
    codec: str = "f32"
    deadline_seconds: float | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        _check(_is_int(self.epochs) and self.epochs >= 1, "epochs", "a whole number of at least 1", self.epochs)
        _check(
            self.batch_size is None or (_is_int(self.batch_size) and 1 <= self.batch_size < 2**31),
            "batch_size",
            "a whole number from 1 to 2**31 - 1, or none for the whole local set",
            self.batch_size,
        )
        _check(
            is_number(self.learning_rate) and self.learning_rate > 0,
            "learning_rate",
            "a finite number above 0",
            self.learning_rate,
        )
        _check(
            is_number(self.proximal) and self.proximal >= 0,
            "proximal",
            "a finite number of at least 0",
            self.proximal,
        )
        _check(
            _is_int(self.seed) and 0 <= self.seed < 2**SEED_BITS,
            "seed",
            f"a whole number from 0 to 2**{SEED_BITS} - 1",
            self.seed,
        )
        _check(isinstance(self.codec, str), "codec", "a codec's name", self.codec)
        _check(
            self.deadline_seconds is None or (is_number(self.deadline_seconds) and self.deadline_seconds > 0),
            "deadline_seconds",
            "a number above 0, or none",
            self.deadline_seconds,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> ClientWork:
        """Read what `to_json` wrote.

        Raises:
            InputError: it is not an object with these fields, or a field is out of range.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(value, dict) or set(value) != names:
            raise InputError(f"client work: expected an object with {', '.join(sorted(names))}")
        return cls(**value)


def client_seed(seed: int, round_number: int, client: str) -> int:
    """The seed of one client in one round of an experiment or task with this seed.

    It depends on nothing else, so a simulation and a fleet with the same clients take the same steps in
    whatever order the devices check in, and no two clients share the random numbers of their rounding.
    """
    digest = hashlib.sha256(f"{seed}/{round_number}/{client}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> (64 - SEED_BITS)


def step_seeds(seed: int, count: int) -> npt.NDArray[np.int32]:
    """The seeds of a client's training steps, one after the other, for the masks of dropout; int32 [count], ≥ 0.

    Fewer are the start of more. They are Philox's raw words, which are fixed on every platform and numpy version; no
    epoch has the key (`device_runtime.batching`).

    Args:
        seed: the client's in this round, from `client_seed`.
        count: number of steps.
    """
    words = np.random.Philox(key=[seed, 2**63 - 1]).random_raw(count)
    return (words >> np.uint64(33)).astype(np.int32)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether it is an integer or a float, and finite; True and False are neither."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def _check(holds: bool, field: str, expected: str, got: object) -> None:
    if not holds:
        raise InputError(f"client work: {field} should be {expected}, not {got!r}")
