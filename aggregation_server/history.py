"""What is remembered of a round when it is over: `RoundRecord`, and the `Counts` in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["committed", "abandoned"]
Task = Literal["training", "evaluation", "rollback"]


@dataclass
class Counts:
    """A tally of what devices asked and what they were answered; grows while a round lasts.

    Attributes:
        checked_in: check-ins, whatever their answer.
        accepted: check-ins that were accepted.
        rejected: check-ins that were not, by reason.
        reported: reports that were aggregated.
        late: reports that were aborted because their round was over.
        refused: reports that did not validate, by reason.
        upload_bytes: bodies of all reports that were read to their end, counted or not.
        download_bytes: files of the bundle and weights that were served.
    """

    checked_in: int = 0
    accepted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    reported: int = 0
    late: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    upload_bytes: int = 0
    download_bytes: int = 0

    def reject(self, reason: str) -> None:
        self.rejected[reason] = self.rejected.get(reason, 0) + 1

    def refuse(self, reason: str) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def __bool__(self) -> bool:
        return self != Counts()

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            checked_in=self.checked_in + other.checked_in,
            accepted=self.accepted + other.accepted,
            rejected=_sum(self.rejected, other.rejected),
            reported=self.reported + other.reported,
            late=self.late + other.late,
            refused=_sum(self.refused, other.refused),
            upload_bytes=self.upload_bytes + other.upload_bytes,
            download_bytes=self.download_bytes + other.download_bytes,
        )


@dataclass(frozen=True)
class RoundRecord:
    """A finished round.

    Attributes:
        number: of the version that it made, from 1; 0 stands for the initial weights. Abandoned attempts share the
            number with what follows. An evaluation has the number of the version that it looked at.
        outcome: ``committed`` or ``abandoned``.
        weights: content hash of the weights after it; an abandoned round leaves those before it.
        started, ended: wall-clock time in seconds since 1970, for people to read.
        seconds: how long it took, by the server's clock.
        task: ``training``, ``evaluation``, or ``rollback`` where an operator made an earlier version the latest.
        reason: of an abandonment, a short word; of a rollback, which version it went back to.
        loss: mean loss over all examples of the clients' steps, or of the evaluation's test examples; or None.
        accuracy: of an evaluation, the mean of the model's metric: the share of right predictions, or of a model that
            predicts numbers, the mean absolute error.
        examples: Σ n_k of the reports aggregated; of an evaluation, predictions.
        cohort: devices that had a seat in it.
        clients: number of the reports aggregated.
        counts: what happened from the end of the previous round to the end of this one.
        id: of the attempt; rounds end in this order.
    """

    number: int
    outcome: Outcome
    weights: str
    started: float
    ended: float
    seconds: float = 0.0
    task: Task = "training"
    reason: str = ""
    loss: float | None = None
    accuracy: float | None = None
    examples: int = 0
    cohort: int = 0
    clients: int = 0
    counts: Counts = field(default_factory=Counts)
    id: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _sum(left: dict[str, int], right: dict[str, int]) -> dict[str, int]:
    return {reason: left.get(reason, 0) + right.get(reason, 0) for reason in sorted({*left, *right})}
