"""A sum of encoded updates that can be merged with others: Σ n_k·delta_k and Σ n_k, whatever the number of updates."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from device_runtime.codec import EncodedUpdate, Total, shaped, undo_rotation, values_of
from device_runtime.errors import IntegrityError
from device_runtime.tensors import FloatArray, TensorSpec, Weights

Doubles = npt.NDArray[np.float64]

_FEW = 16  # updates that are added in float32 before their sum goes into the one in float64
_RUN = 1 << 16  # values that are gone through at a time: what is taken for them stays in a core's cache

# magic, version, what is there, model id, round, clients, Σ n_k and loss examples (128 bits each), loss sum, values
_HEADER = struct.Struct("<4sHH16sIQ16s16sdQ")
_CHECKSUM = struct.Struct("<I")
_MAGIC, _VERSION = b"PFPS", 1
_PLAIN, _ROTATED = 1, 2


@dataclass(frozen=True)
class Tally:
    """What is counted of updates, beside their values.

    Attributes:
        clients: number of updates.
        examples: Σ n_k.
        loss_sum: Σ n_k·loss_k of those that reported a loss.
        loss_examples: Σ n_k of those.
    """

    clients: int = 0
    examples: int = 0
    loss_sum: float = 0.0
    loss_examples: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.clients + other.clients,
            self.examples + other.examples,
            self.loss_sum + other.loss_sum,
            self.loss_examples + other.loss_examples,
        )

    @classmethod
    def of(cls, update: EncodedUpdate) -> Tally:
        """Of one update."""
        weight, metrics = update.header.weight, update.header.metrics
        if "loss" not in metrics:
            return cls(1, weight)
        return cls(1, weight, weight * metrics["loss"], weight)

    @property
    def loss(self) -> float | None:
        """Mean training loss over the examples of the clients that reported one; None where that is no number."""
        if not self.loss_examples:
            return None
        mean = self.loss_sum / self.loss_examples
        return mean if math.isfinite(mean) else None


class PartialSum:
    """The sum of some of a round's updates, in memory that does not depend on their number.

    In float64, so that neither order nor number of the updates costs accuracy. Updates that are rotated are added as
    they are, and their sum is rotated back, once. The bits are those of the updates in the order in which they were
    added; a merged sum's are those of the sums in the order in which they were merged.

    Memory: 12 bytes a value for updates that are rotated, and as many for those that are not, where there are any.

    Args:
        specs: the model's tensors.
        weighted: multiply each update by its number of examples; else all count alike.
    """

    def __init__(self, specs: Sequence[TensorSpec], weighted: bool = True) -> None:
        self.tally = Tally()
        self._specs = specs
        self._size = values_of(specs)
        self._weighted = weighted
        self._round: tuple[str, int] | None = None  # model id and number, of the first update
        self._plain: Doubles | None = None
        self._rotated: Doubles | None = None
        self._recent: Total | None = None
        self._recent_count = 0
        self._one: Total | None = None  # memory for an update that is not rotated

    def add(self, update: EncodedUpdate) -> None:
        """Add a validated update: finite, of the right shapes, weight ≥ 1.

        Raises:
            ValueError: it belongs to another model or round than those before.
        """
        header = update.header
        self._require_round(header.model_id, header.round_number)
        factor = header.weight if self._weighted else 1
        if update.codec.rotated:
            if self._recent is None:
                self._recent = Total(self._size)
            update.add_to(self._recent, factor)
            self._recent_count += 1
            if self._recent_count == _FEW:
                self._flush()
        else:
            self._plain = _zeros(self._plain, self._size)
            values = self._decoded(update)
            for start in range(0, self._size, _RUN):
                run = slice(start, start + _RUN)
                self._plain[run] += np.multiply(values[run], float(factor), dtype=np.float64)
        self.tally += Tally.of(update)

    def merge(self, other: PartialSum) -> None:
        """Add a sum of further updates of the same round.

        Raises:
            ValueError: it is of another model or round, or weighs its updates otherwise.
        """
        if (self._size, self._weighted) != (other._size, other._weighted):
            raise ValueError("the sums are of other models, or one of them weighs its updates and the other does not")
        if other._round is not None:
            self._require_round(*other._round)
        self._flush()
        other._flush()
        self._plain = _added(self._plain, other._plain)
        self._rotated = _added(self._rotated, other._rotated)
        self.tally += other.tally

    @property
    def clients(self) -> int:
        """Number of updates."""
        return self.tally.clients

    @property
    def examples(self) -> int:
        """Σ n_k."""
        return self.tally.examples

    @property
    def loss(self) -> float | None:
        """The tally's."""
        return self.tally.loss

    def mean(self) -> FloatArray:
        """Σ n_k·delta_k / Σ n_k, or Σ delta_k over the number of clients; float32 [values].

        Raises:
            ValueError: nothing was added. Zeros would look like a round in which nobody learned anything.
        """
        if not self.tally.clients:
            raise ValueError("the mean of no updates is not defined")
        # Also of a sum that no 64-bit integer holds.
        divisor = np.float64(self.tally.examples if self._weighted else self.tally.clients)
        mean = _quotient(self._plain, divisor) if self._plain is not None else np.zeros(self._size, np.float32)
        self._flush()
        if self._rotated is not None and self._round is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for what is not finite
                rotated = _quotient(self._rotated, divisor)
                undo_rotation(rotated, self._round[1])
                mean += rotated
        return mean

    def result(self) -> Weights:
        """`mean` as the model's tensors."""
        return shaped(self.mean(), self._specs)

    def to_bytes(self) -> bytes:
        """The sum for another machine to merge. 8 bytes a value; 16 where some updates were rotated and some not.

        Little-endian: a header, the sum of updates as they are, that of rotated ones, and a CRC-32.

        Raises:
            ValueError: nothing was added, or it is a sum without weights.
        """
        if self._round is None or not self._weighted:
            raise ValueError("only a weighted sum of at least one update is written")
        self._flush()
        sums = [(_PLAIN, self._plain), (_ROTATED, self._rotated)]
        model_id, number = self._round
        header = _HEADER.pack(
            _MAGIC,
            _VERSION,
            sum(flag for flag, values in sums if values is not None),
            bytes.fromhex(model_id),
            number,
            self.tally.clients,
            self.tally.examples.to_bytes(16, "little"),
            self.tally.loss_examples.to_bytes(16, "little"),
            self.tally.loss_sum,
            self._size,
        )
        content = header + b"".join(v.astype("<f8", copy=False).tobytes() for _, v in sums if v is not None)
        return content + _CHECKSUM.pack(zlib.crc32(content))

    @classmethod
    def from_bytes(
        cls, data: bytes, specs: Sequence[TensorSpec], model_id: str, round_number: int, where: str = "partial sum"
    ) -> PartialSum:
        """Read what `to_bytes` wrote. As good as who sent it: what is in it can't be validated any more.

        Args:
            data: the bytes.
            specs: the model's tensors.
            model_id: the manifest's.
            round_number: the round that it should be of.
            where: what the bytes are, for messages.

        Raises:
            IntegrityError: they are no partial sum, damaged, or of another model or round.
        """
        if len(data) < _HEADER.size + _CHECKSUM.size or data[:4] != _MAGIC:
            raise IntegrityError(f"{where}: not a partial sum ({len(data)} bytes)")
        content = memoryview(data)[: -_CHECKSUM.size]
        if _CHECKSUM.unpack_from(data, len(content)) != (zlib.crc32(content),):
            raise IntegrityError(f"{where}: the checksum does not match the content")
        _, version, flags, model, number, clients, examples, loss_examples, loss_sum, size = _HEADER.unpack_from(data)
        if version != _VERSION:
            raise IntegrityError(f"{where}: written in version {version} of the format, expected {_VERSION}")
        total = cls(specs)
        if (model.hex(), size) != (model_id, total._size):
            found = f"{model.hex()} with {size} values"
            raise IntegrityError(f"{where}: of the model {found}, expected {model_id} with {total._size}")
        if number != round_number:
            raise IntegrityError(f"{where}: of round {number}, expected {round_number}")
        there = [flag for flag in (_PLAIN, _ROTATED) if flags & flag]
        if sum(there) != flags or not there or len(content) != _HEADER.size + 8 * size * len(there):
            raise IntegrityError(f"{where}: {len(content) - _HEADER.size} bytes of values do not fit its header")
        counted = Tally(clients, int.from_bytes(examples, "little"), loss_sum, int.from_bytes(loss_examples, "little"))
        if not 1 <= counted.clients <= counted.examples:
            raise IntegrityError(f"{where}: {counted.clients} clients can't have {counted.examples} examples")
        arrays = [
            np.frombuffer(content, "<f8", size, _HEADER.size + 8 * size * place).astype(np.float64)
            for place in range(len(there))
        ]
        total._round = (model_id, number)
        total._plain = arrays[0] if flags & _PLAIN else None
        total._rotated = arrays[-1] if flags & _ROTATED else None
        total.tally = counted
        return total

    def _require_round(self, model_id: str, number: int) -> None:
        if self._round is None:
            self._round = (model_id, number)
        elif self._round != (model_id, number):
            model, before = self._round
            raise ValueError(f"an update of round {number} of {model_id} in a sum of round {before} of {model}")

    def _decoded(self, update: EncodedUpdate) -> FloatArray:
        """The values of an update that is not rotated, until the next one is decoded."""
        if self._one is None:
            self._one = Total(self._size)
        else:
            self._one.clear()
        update.add_to(self._one, 1.0)
        return self._one.values

    def _flush(self) -> None:
        """Put what was added in float32 into the sum in float64."""
        if self._recent is None or not self._recent_count:
            return
        self._rotated = _zeros(self._rotated, self._size)
        with np.errstate(over="ignore", invalid="ignore"):  # as in `mean`
            self._rotated += self._recent.settle()
        self._recent.clear()
        self._recent_count = 0


def _zeros(there: Doubles | None, size: int) -> Doubles:
    return np.zeros(size, np.float64) if there is None else there


def _added(one: Doubles | None, other: Doubles | None) -> Doubles | None:
    """The sum, in the memory of `one` where it has any."""
    if other is None:
        return one
    one = _zeros(one, other.size)
    with np.errstate(over="ignore", invalid="ignore"):  # as in `PartialSum.mean`
        one += other
    return one


def _quotient(total: Doubles, divisor: np.float64) -> FloatArray:
    """`total` over `divisor`, float32, without a second vector of float64."""
    quotient = np.empty(total.size, np.float32)
    for start in range(0, total.size, _RUN):
        run = slice(start, start + _RUN)
        quotient[run] = total[run] / divisor
    return quotient
