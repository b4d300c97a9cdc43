"""What devices and server say to each other, as dataclasses: the one definition that both sides use.

The vocabulary is that of Bonawitz et al. 2019, *Towards Federated Learning at Scale: System Design*.
All messages but the encoded update, the weights and the bundle's files are JSON objects.
docs/protocol.md describes the exchange.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

CHECK_IN = "/v1/check-in"
CONFIGURATION = "/v1/configuration"
REPORT = "/v1/report"
STATUS = "/v1/status"
LATEST_WEIGHTS = "/v1/weights/latest"
HOLDS = "holds"  # query of a configuration: the weights that the device has already


def bundle_path(identity: str, name: str) -> str:
    """Path of one file of a bundle."""
    return f"/v1/bundles/{identity}/{name}"


def weights_path(identity: str) -> str:
    """Path of weights by their content hash."""
    return f"/v1/weights/{identity}"


def encoded_weights_path(identity: str) -> str:
    """Path of encoded weights, by their content hash."""
    return f"/v1/encoded-weights/{identity}"


class _Message:
    def to_json(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True)
class CheckIn(_Message):
    """A device offers to take part in the next round of a population.

    Attributes:
        population: the name under which devices and tasks meet; the model's name by default.
        client: the device's name within the population: letters, digits, ``-``, ``_`` and ``.``, 1 to 64.
        runtime: its interpreter and version, for statistics.
    """

    population: str
    client: str
    runtime: str


@dataclass(frozen=True)
class CheckInReply(_Message):
    """Accepted into a round's cohort, rejected until later, or no further work.

    Attributes:
        decision: ``accept``, ``reject``, or ``complete`` where the task has had all its rounds.
        reason: of a rejection: a short word such as ``cohort_full``.
        round_number, token: of an acceptance; the token authorises one configuration and one report.
        retry_after_seconds: of a rejection, when to check in again; of an acceptance, when to ask for the
            configuration.
    """

    decision: Literal["accept", "reject", "complete"]
    reason: str = ""
    round_number: int = 0
    token: str = ""
    retry_after_seconds: float = 0.0


@dataclass(frozen=True)
class Configuration(_Message):
    """The answer to an accepted device that asks for its work.

    Attributes:
        state: ``wait`` during the selection, ``start``, or ``aborted`` where the round is over.
        retry_after_seconds: of ``wait``, when to ask again.
        round_number: of ``start``.
        bundle: identity (SHA-256 of the manifest) of the bundle to train with.
        weights: content hash (SHA-256) of the weights to start from.
        work: a `ClientWork` as JSON.
        base, encoded: how the device gets the weights in fewer bytes: it adds the values of each of these encoded
            weights, named by their content hash, in this order, to the version `base`, which it said that it holds, or
            to zeros where that is empty. None of them: it fetches the whole file.
    """

    state: Literal["wait", "start", "aborted"]
    retry_after_seconds: float = 0.0
    round_number: int = 0
    bundle: str = ""
    weights: str = ""
    work: dict[str, Any] | None = None
    base: str = ""
    encoded: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ReportReply(_Message):
    """The answer to a report.

    Attributes:
        verdict: ``accepted``; ``aborted`` for a late report, which is never counted; ``refused`` for one
            that does not validate.
        reason: a short, fixed word, such as ``checksum``, ``late`` or ``duplicate``.
        message: the same for a person to read.
    """

    verdict: Literal["accepted", "aborted", "refused"]
    reason: str = ""
    message: str = ""
