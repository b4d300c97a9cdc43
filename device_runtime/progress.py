"""How far a local training has come, kept in a file, so that it goes on after whatever ended it.

What is kept is all that a step depends on: the artifact's variables (weights and the optimiser's state), and how many
steps were done; batches and seeds follow from that. A training that goes on takes the very steps that it would have
taken, and its update is the same to the bit.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from device_runtime.errors import InputError, IntegrityError
from device_runtime.sealed import open_sealed, remove, seal
from device_runtime.tensors import FloatArray


@dataclass(frozen=True)
class Position:
    """Where a local training stands between two steps.

    Attributes:
        steps: training steps done, over all epochs.
        loss_sum: Σ of the losses of all their examples.
        seen: number of these examples.
        seconds: that they took.
    """

    steps: int = 0
    loss_sum: float = 0.0
    seen: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class SavePolicy:
    """When progress is saved: a trade of work that is lost against the disk's wear.

    Attributes:
        every: not before so many steps since the last time.
        seconds: nor before so many seconds.
    """

    every: int = 20
    seconds: float = 30.0


class Progress:
    """The progress of one training.

    Args:
        path: of the file.
        task: what the training is of, as JSON; a file of another one is not taken.
        sizes: elements of the artifact's variables, by number.
        policy: when it is saved.
        clock: monotonic seconds.
        notice: told when it was restored or saved.
    """

    def __init__(
        self,
        path: Path,
        task: Mapping[str, Any],
        sizes: Sequence[int],
        policy: SavePolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        notice: Callable[..., None] = lambda event, **fields: None,
    ) -> None:
        self._path = path
        self._task = dict(task)
        self._sizes = sizes
        self._policy = policy or SavePolicy()
        self._clock = clock
        self._notice = notice
        self._saved = (0, clock())

    def restore(self, write: Callable[[int, FloatArray], object]) -> Position | None:
        """Hand every variable to `write`, with its number; None where there is nothing to go on from."""
        sealed = open_sealed(self._path)
        if sealed is None:
            return None
        with sealed:
            position = _position(sealed.header)
            if position is None or sealed.header.get("task") != self._task or sealed.size != 4 * sum(self._sizes):
                return None
            for number, size in enumerate(self._sizes):
                write(number, np.frombuffer(sealed.read(4 * size), "<f4").astype(np.float32, copy=False))
        self._saved = (position.steps, self._clock())
        self._notice("progress_restored", steps=position.steps)
        return position

    def due(self, steps: int) -> bool:
        """Whether the policy wants to have it saved now."""
        saved, at = self._saved
        return steps - saved >= self._policy.every and self._clock() - at >= self._policy.seconds

    def save(self, position: Position, values: Iterable[FloatArray]) -> bool:
        """Keep it; False where that failed: a disk that is full costs the progress, and not the training."""
        header = {
            "task": self._task,
            "steps": position.steps,
            "loss_sum": position.loss_sum.hex(),
            "seen": position.seen,
            "seconds": position.seconds,
        }
        self._saved = (position.steps, self._clock())
        try:
            seal(self._path, header, (value.astype("<f4", copy=False).view(np.uint8).data for value in values))
        except InputError as error:
            remove(self._path)  # the update may need the room
            self._notice("progress_not_saved", steps=position.steps, reason=str(error))
            return False
        self._notice("progress_saved", steps=position.steps)
        return True

    @contextlib.contextmanager
    def opened(self) -> Iterator[Callable[[int], FloatArray]]:
        """Within the context, a variable's values by its number; larger numbers come after smaller ones.

        Raises:
            IntegrityError: what was saved does not hold any more.
        """
        sealed = open_sealed(self._path)
        if sealed is None:
            raise IntegrityError(f"{self._path}: changed or damaged since it was written")

        following = 0

        def read(number: int) -> FloatArray:
            nonlocal following
            sealed.skip(4 * sum(self._sizes[following:number]))
            following = number + 1
            return np.frombuffer(sealed.read(4 * self._sizes[number]), "<f4").astype(np.float32, copy=False)

        with sealed:
            yield read

    def discard(self) -> None:
        """Forget it."""
        remove(self._path)


def kept_task(path: Path) -> dict[str, Any]:
    """What the training is of whose progress is kept at `path`; empty where there is none."""
    sealed = open_sealed(path)
    if sealed is None:
        return {}
    with sealed:
        task = sealed.header.get("task")
    return task if isinstance(task, dict) else {}


def _position(header: Mapping[str, Any]) -> Position | None:
    try:
        return Position(
            int(header["steps"]), float.fromhex(header["loss_sum"]), int(header["seen"]), float(header["seconds"])
        )
    except (KeyError, TypeError, ValueError):
        return None
