"""What devices and server say to each other, as dataclasses: the one definition that both sides use.

The vocabulary is that of Bonawitz et al. 2019, *Towards Federated Learning at Scale: System Design*.
All messages but the encoded update, the weights and the bundle's files are JSON objects. Every call but `ENROL` names
its caller (HTTP's Basic scheme: the client's name and its secret), and what belongs to a round carries the token of the
acceptance in the header `TOKEN`. docs/protocol.md describes the exchange.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

ENROL = "/v1/enrol"
CHECK_IN = "/v1/check-in"
CONFIGURATION = "/v1/configuration"
REPORT = "/v1/report"
STATUS = "/v1/status"
LATEST_WEIGHTS = "/v1/weights/latest"
HOLDS = "holds"  # query of a configuration: the weights that the device has already
TOKEN = "Pocketfed-Token"  # noqa: S105 - header of a configuration and of a report: the token of the acceptance
CLIENT_NAME = "[A-Za-z0-9._-]{1,64}"
SHORTEST_SECRET = 32  # characters of a device's secret, drawn at random: no dictionary helps against its hash

TaskKind = Literal["training", "evaluation"]


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
        return dict(vars(self))  # all that messages hold is JSON already


@dataclass(frozen=True)
class Enrolment(_Message):
    """A device asks to be known: once, before its first check-in.

    It has drawn its secret by itself and kept it, so that an enrolment whose answer was lost can be repeated.

    Attributes:
        code: a one-use code of the fleet's operator; empty where the server enrols anybody.
        client: the device's name within the population: letters, digits, ``-``, ``_`` and ``.``, 1 to 64.
        secret: printable ASCII, of at least `SHORTEST_SECRET` characters; the server keeps its SHA-256.
    """

    code: str = field(repr=False)
    client: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class EnrolmentReply(_Message):
    """The answer to an enrolment.

    Attributes:
        verdict: ``enrolled`` or ``refused``.
        reason: of a refusal: ``code`` (unknown, used, expired or of another client), ``client`` (no name), ``taken``
            (the name is somebody's already) or ``secret`` (too short).
        message: the same for a person to read.
    """

    verdict: Literal["enrolled", "refused"]
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class CheckIn(_Message):
    """A device offers to take part in the next round of a population.

    Attributes:
        population: the name under which devices and tasks meet; the model's name by default.
        client: the device's name, as it is enrolled.
        runtime: its interpreter and version, for statistics.
        tasks: what it can do: ``training``, and ``evaluation`` where it has examples to test with.
    """

    population: str
    client: str
    runtime: str
    tasks: list[str] = field(default_factory=lambda: ["training"])


@dataclass(frozen=True)
class CheckInReply(_Message):
    """Accepted into a round's cohort, rejected until later, or no further work.

    Attributes:
        decision: ``accept``, ``reject``, or ``complete`` where the task has had all its rounds.
        reason: of a rejection: a short word such as ``cohort_full``.
        round_number, token: of an acceptance; the token stands for this device in this round, and for one report.
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
        state: ``wait`` during the selection, ``start``, or ``aborted`` where the round is over, or went on with others.
        retry_after_seconds: of ``wait``, when to ask again.
        round_number: of ``start``.
        task: of ``start``: ``training``, or ``evaluation`` of the weights on the device's own test examples.
        bundle: identity (SHA-256 of the manifest) of the bundle to train with.
        weights: content hash (SHA-256) of the weights to start from.
        work: a `ClientWork` as JSON; of an evaluation, its seed and deadline hold, and its batch size.
        base, encoded: how the device gets the weights in fewer bytes: it adds the values of each of these encoded
            weights, named by their content hash, in this order, to the version `base`, which it said that it holds, or
            to zeros where that is empty. None of them: it fetches the whole file.
    """

    state: Literal["wait", "start", "aborted"]
    retry_after_seconds: float = 0.0
    round_number: int = 0
    task: TaskKind = "training"
    bundle: str = ""
    weights: str = ""
    work: dict[str, Any] | None = None
    base: str = ""
    encoded: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class EvaluationReport(_Message):
    """What a device reports of an evaluation, as JSON; a training's report is an encoded update.

    Attributes:
        round_number: of the configuration.
        count: predictions that were looked at, at least 1.
        correct: those that were right, from 0 to `count`; of a model with another metric than accuracy, its sum.
        loss_sum: sum of their losses.
    """

    round_number: int
    count: int
    correct: float
    loss_sum: float


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
