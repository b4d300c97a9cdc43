"""What the database holds, as the rest of the server has it: rows as dataclasses, and queries that several need."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select

from aggregation_server.history import Counts, RoundRecord
from aggregation_server.rounds import Phase, Round, RoundConfig
from aggregation_server.storage.schema import DEVICES, MADE_A_VERSION, OPTIMIZERS, OVER, ROUNDS, WEIGHTS


@dataclass(frozen=True)
class Fleet:
    """What all servers of a fleet share; see `aggregation_server.storage.schema.FLEET`."""

    clock: float
    paused: bool
    token_key: bytes
    number: int
    weights: str
    initial_weights: str
    released: int | None
    counts: Counts


@dataclass(frozen=True)
class Device:
    """An enrolled device, as much of it as a check-in needs."""

    secret: bytes
    revoked: bool
    participated: float | None


@dataclass(frozen=True)
class Spooled:
    """Where a report's bytes are (`aggregation_server.storage.spool`)."""

    segment: str
    place: int
    length: int


@dataclass(frozen=True)
class CountedReport:
    """A report that counts: of a training, where its bytes are; of an evaluation, what it says."""

    device: str
    spooled: Spooled | None
    evaluation: dict[str, Any] | None


@dataclass(frozen=True)
class Version:
    """Weights that a round made, and all that belongs to them."""

    weights: str
    data: bytes
    optimizer: bytes | None = None
    encoded: tuple[str, bytes] | None = None
    """What the encoded form is to be added to, and the form."""


def under_way(connection: Connection) -> bool:
    """Whether devices train already."""
    return connection.execute(select(ROUNDS.c.id).where(~OVER, ROUNDS.c.cohort > 0).limit(1)).scalar() is not None


def devices_of(connection: Connection, names: Iterable[str]) -> dict[str, Device]:
    rows = connection.execute(_DEVICES, {"names": list(names)})
    return {row.name: Device(bytes(row.secret), row.revoked is not None, row.participated) for row in rows}


def keep_weights(connection: Connection, identity: str, data: bytes) -> None:
    held = connection.execute(select(WEIGHTS.c.sha256).where(WEIGHTS.c.sha256 == identity)).scalar()
    if held is None:  # a round whose mean delta is zero makes no new version
        connection.execute(insert(WEIGHTS).values(sha256=identity, data=data))


def keep_optimizer(connection: Connection, round_id: int, data: bytes | None) -> None:
    if data is not None:
        connection.execute(insert(OPTIMIZERS).values(round_id=round_id, data=data))


def optimizer_of(connection: Connection, number: int) -> bytes | None:
    query = select(OPTIMIZERS.c.data).join(ROUNDS).where(ROUNDS.c.number == number, MADE_A_VERSION)
    data = connection.execute(query).scalar()
    return None if data is None else bytes(data)


def fleet_of(row: Row[Any]) -> Fleet:
    return Fleet(
        row.clock,
        row.paused,
        bytes(row.token_key),
        row.number,
        row.weights,
        row.initial_weights,
        row.released,
        Counts(**row.counts),
    )


def round_of(row: Row[Any], config: RoundConfig) -> Round:
    return Round(
        id=row.id,
        number=row.number,
        task=row.task,
        config=config,
        since=row.since,
        phase=Phase(row.phase),
        offered=row.offered,
        cohort=row.cohort,
        reported=row.reported,
        reason=row.reason,
    )


def record_of_row(row: Row[Any]) -> RoundRecord:
    return RoundRecord(
        number=row.number,
        outcome=row.phase,
        weights=row.weights,
        started=row.started,
        ended=row.ended,
        seconds=row.seconds or 0.0,
        task=row.task,
        reason=row.reason,
        loss=row.loss,
        accuracy=row.accuracy,
        examples=row.examples or 0,
        cohort=row.cohort,
        clients=row.clients or 0,
        counts=Counts(**row.counts),
        id=row.id,
    )


def result_columns(record: RoundRecord) -> dict[str, Any]:
    names = ("weights", "started", "ended", "seconds", "loss", "accuracy", "examples", "cohort", "clients")
    return {name: getattr(record, name) for name in names}


_DEVICES = select(DEVICES.c.name, DEVICES.c.secret, DEVICES.c.revoked, DEVICES.c.participated).where(
    DEVICES.c.name.in_(bindparam("names", expanding=True))
)
