"""The server's memory: the fleet's state, its rounds, versions of the weights, and devices, in a database.

What is written here is decided elsewhere. Every change is a part of a `Ledger`, which is one transaction that holds the
fleet's row, so that the changes of several servers come one after the other; a crash at any instant leaves what was
before a transaction, or what is after it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from aggregation_server.database import Database, StoreError
from aggregation_server.history import Counts, RoundRecord
from aggregation_server.rounds import Phase, Round, RoundConfig, Standing
from aggregation_server.schema import DEVICES, ENCODED_WEIGHTS, FLEET, OVER, PARTICIPANTS, ROUNDS, WEIGHTS
from device_runtime.errors import InputError
from device_runtime.tensors import sha256

REMEMBERED = 16
"""Rounds that are over whose devices are still known, and versions whose encoded form is kept."""
_COLUMNS = [column for column in ROUNDS.c if column is not ROUNDS.c.optimizer]  # it may be larger than the model


@dataclass(frozen=True)
class Fleet:
    """What all servers of a fleet share; see `aggregation_server.schema.FLEET`."""

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
    """Where a report's bytes are (`aggregation_server.spool`)."""

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


class Store:
    """The memory of one model's fleet."""

    def __init__(self, url: str, model_id: str, initial: bytes) -> None:
        """Open the database; a new one gets the initial weights as version 0.

        Args:
            url: an SQLAlchemy URL, such as ``sqlite:///server.db``.
            model_id: the manifest's; a database never mixes two models.
            initial: safetensors bytes of the weights that the first round starts from.

        Raises:
            InputError: the URL can't be opened, or the database belongs to another model.
        """
        self.database = Database(url)
        try:
            self._begin(model_id, initial)
        except StoreError as error:
            self.close()
            raise InputError(str(error)) from None
        except BaseException:
            self.close()
            raise

    def _begin(self, model_id: str, initial: bytes) -> None:
        identity, name = sha256(initial), self.database.name
        with self.database.transaction() as connection:
            self.database.wait_for_starts(connection)
            found = connection.execute(select(FLEET).with_for_update()).one_or_none()
            if found is not None and found.model_id != model_id:
                raise InputError(
                    f"{name}: this database belongs to the model {found.model_id}, the bundle is of {model_id};"
                    " give another file"
                )
            if found is not None and (found.number or found.initial_weights == identity or _under_way(connection)):
                return
            _keep_weights(connection, identity, initial)
            if found is None:
                fleet = {"model_id": model_id, "clock": 0.0, "paused": False, "token_key": secrets.token_bytes(32)}
                fleet |= {"number": 0, "weights": identity, "initial_weights": identity, "counts": asdict(Counts())}
                connection.execute(insert(FLEET).values(id=1, **fleet))
            else:  # before the first round, the bundle's weights are the ones to start from, whatever it was before
                connection.execute(update(FLEET).values(weights=identity, initial_weights=identity))

    def claim_spool(self, identity: str, folder: Path) -> None:
        """Have the reports in a folder from now on.

        Raises:
            InputError: others are in another folder, or will be.
            StoreError: the database failed.
        """
        waiting = select(ROUNDS.c.id).join(PARTICIPANTS).where(~OVER, PARTICIPANTS.c.segment.is_not(None)).limit(1)
        with self.database.transaction() as connection:
            known = connection.execute(select(FLEET.c.spool).with_for_update()).scalar_one()
            if known == identity:
                return
            if known is not None and (self.database.shared or connection.execute(waiting).scalar() is not None):
                raise InputError(
                    f"{folder}: not the folder with this fleet's reports; give all its servers the same --spool, or"
                    f" where that is lost with its reports, write {known} into {folder / 'identity'}"
                )
            connection.execute(update(FLEET).values(spool=identity))

    @contextmanager
    def ledger(self, config: RoundConfig) -> Iterator[Ledger]:
        """A transaction that changes the fleet.

        Raises:
            StoreError: the database failed, and nothing of it happened.
        """
        with self.database.transaction() as connection:
            yield Ledger(connection, config)

    def fleet(self) -> Fleet:
        """The fleet's state now."""
        with self.database.reading() as connection:
            return _fleet(connection.execute(select(FLEET)).one())

    def open_round(self, config: RoundConfig) -> tuple[Round, Counts] | None:
        """The round that is not over, and its counts."""
        return self.snapshot(config)[1]

    def snapshot(self, config: RoundConfig) -> tuple[Fleet, tuple[Round, Counts] | None]:
        """The fleet's state, and the round that is not over with its counts, at one moment."""
        with self.database.reading() as connection:
            fleet = _fleet(connection.execute(select(FLEET)).one())
            row = connection.execute(select(*_COLUMNS).where(~OVER)).one_or_none()
        return fleet, None if row is None else (_round(row, config), Counts(**row.counts))

    def first_open_id(self) -> int:
        """Rounds with ids below this one are over."""
        with self.database.reading() as connection:
            opened = connection.execute(select(ROUNDS.c.id).where(~OVER)).scalar()
            return int(opened or (connection.execute(select(func.max(ROUNDS.c.id))).scalar() or 0) + 1)

    def devices(self, names: Iterable[str]) -> dict[str, Device]:
        """Those of these devices that are enrolled."""
        with self.database.reading() as connection:
            return _devices(connection, names)

    def history(self, limit: int, before: int | None = None) -> list[RoundRecord]:
        """The last `limit` rounds that are over, the oldest first; only those whose id is below `before`."""
        query = select(*_COLUMNS).where(OVER).order_by(ROUNDS.c.id.desc()).limit(limit)
        with self.database.reading() as connection:
            rows = connection.execute(query if before is None else query.where(ROUNDS.c.id < before)).all()
        return [_record(row) for row in reversed(rows)]

    def weights(self, identity: str) -> bytes | None:
        """The bytes whose SHA-256 is `identity`, or None where they are not there, or not any more."""
        with self.database.reading() as connection:
            data = connection.execute(select(WEIGHTS.c.data).where(WEIGHTS.c.sha256 == identity)).scalar()
        if data is not None and sha256(data) != identity:
            raise StoreError(f"{self.database.name}: the weights {identity[:16]}… are damaged in the database")
        return None if data is None else bytes(data)

    def optimizer(self, number: int) -> bytes | None:
        """The optimiser's state that belongs to a version, where it has one."""
        with self.database.reading() as connection:
            return _optimizer(connection, number)

    def encoded_weights(self, identity: str) -> bytes | None:
        """Encoded weights by the SHA-256 of their bytes."""
        query = select(ENCODED_WEIGHTS.c.data).where(ENCODED_WEIGHTS.c.sha256 == identity).limit(1)
        with self.database.reading() as connection:
            data = connection.execute(query).scalar()
        return None if data is None else bytes(data)

    def encoded_forms(self) -> list[tuple[str, str, bytes]]:
        """Of the latest versions that have one: the version, what its encoded form is added to, and the form."""
        columns = (ENCODED_WEIGHTS.c.weights, ENCODED_WEIGHTS.c.base, ENCODED_WEIGHTS.c.data)
        with self.database.reading() as connection:
            rows = connection.execute(select(*columns).order_by(ENCODED_WEIGHTS.c.id)).all()
        return [(row.weights, row.base, bytes(row.data)) for row in rows]

    def reports(self, round_id: int) -> list[CountedReport]:
        """The reports that count in a round, in the order of their devices' names."""
        columns = (PARTICIPANTS.c.device, PARTICIPANTS.c.segment, PARTICIPANTS.c.place, PARTICIPANTS.c.length)
        query = select(*columns, PARTICIPANTS.c.evaluation).where(
            PARTICIPANTS.c.round_id == round_id, PARTICIPANTS.c.reported
        )
        with self.database.reading() as connection:
            rows = connection.execute(query).all()
        reports = [
            CountedReport(
                row.device,
                None if row.segment is None else Spooled(row.segment, row.place, row.length),
                row.evaluation,
            )
            for row in rows
        ]
        return sorted(reports, key=lambda report: report.device)  # not by the database's idea of an order

    def close(self) -> None:
        self.database.close()


class Ledger:
    """One transaction, with the fleet's row locked.

    Attributes:
        connection: of the transaction.
        fleet: as it was when the transaction began.
        changed: whether the fleet or its open round are written anew.
    """

    def __init__(self, connection: Connection, config: RoundConfig) -> None:
        self.connection = connection
        self.fleet = _fleet(connection.execute(select(FLEET).with_for_update()).one())
        self.changed = False
        self._config = config
        self._written: tuple[Round, Counts] | None = None  # the open round, as the database has it

    def set_fleet(self, **columns: Any) -> None:
        """Change the fleet's row."""
        self.changed = True
        self.connection.execute(update(FLEET).values(**columns))
        self.fleet = replace(self.fleet, **columns | ({"counts": Counts(**c)} if (c := columns.get("counts")) else {}))

    def open_round(self) -> tuple[Round, Counts, float] | None:
        """The round that is not over, its counts, and when it was opened."""
        row = self.connection.execute(select(*_COLUMNS).where(~OVER)).one_or_none()
        if row is None:
            return None
        self._written = _round(row, self._config), Counts(**row.counts)
        return (*self._written, row.opened)

    def rounds(self, ids: Sequence[int]) -> dict[int, Round]:
        """Those of these rounds that there are."""
        rows = self.connection.execute(select(*_COLUMNS).where(ROUNDS.c.id.in_(ids)))
        return {row.id: _round(row, self._config) for row in rows}

    def begin_round(self, number: int, task: str, now: float) -> Round:
        """Open a round; there must be no other."""
        values: dict[str, Any] = {"number": number, "task": task, "phase": Phase.SELECTION.value, "reason": ""}
        values |= {"since": now, "opened": now, "offered": 0, "cohort": 0, "reported": 0, "counts": asdict(Counts())}
        row = self.connection.execute(insert(ROUNDS).values(**values).returning(ROUNDS)).one()
        self.changed = True
        return _round(row, self._config)

    def update_round(self, current: Round, counts: Counts) -> None:
        """Write how a round stands, where it is not how it stood."""
        if self._written == (current, counts):
            return
        self.changed = True
        values = {"phase": current.phase.value, "reason": current.reason, "since": current.since}
        values |= {"offered": current.offered, "cohort": current.cohort, "reported": current.reported}
        self.connection.execute(update(ROUNDS).where(ROUNDS.c.id == current.id).values(**values, counts=asdict(counts)))

    def drop_round(self, round_id: int) -> None:
        """Forget an open round that nobody was in."""
        self.connection.execute(delete(PARTICIPANTS).where(PARTICIPANTS.c.round_id == round_id))
        self.connection.execute(delete(ROUNDS).where(ROUNDS.c.id == round_id))

    def end_round(self, current: Round, record: RoundRecord, optimizer: bytes | None = None) -> None:
        """Write a round that is over, add up its counts, and forget the devices of rounds from long before."""
        self.update_round(current, record.counts)
        self.connection.execute(
            update(ROUNDS).where(ROUNDS.c.id == current.id).values(**_result(record), optimizer=optimizer)
        )
        self.set_fleet(counts=asdict(self.fleet.counts + record.counts))
        over = select(ROUNDS.c.id).where(OVER).order_by(ROUNDS.c.id.desc()).offset(REMEMBERED).limit(1)
        oldest = self.connection.execute(over).scalar()
        if oldest is not None:
            self.connection.execute(delete(PARTICIPANTS).where(PARTICIPANTS.c.round_id <= oldest))

    def insert_record(self, record: RoundRecord, now: float, optimizer: bytes | None = None) -> RoundRecord:
        """Write a round that never was open; the record with its id."""
        values: dict[str, Any] = {"number": record.number, "task": record.task, "phase": record.outcome}
        values |= {"reason": record.reason}
        values |= {"since": now, "opened": now, "offered": 0, "reported": 0, "counts": asdict(record.counts)}
        query = insert(ROUNDS).values(**values | _result(record), optimizer=optimizer).returning(ROUNDS.c.id)
        return replace(record, id=self.connection.execute(query).scalar_one())

    def optimizer(self, number: int) -> bytes | None:
        """As `Store.optimizer`."""
        return _optimizer(self.connection, number)

    def evaluated(self, number: int) -> bool:
        """Whether an evaluation of this version was held, or tried."""
        query = select(ROUNDS.c.id).where(ROUNDS.c.number == number, ROUNDS.c.task == "evaluation").limit(1)
        return self.connection.execute(query).scalar() is not None

    def version(self, number: int) -> str | None:
        """The identity of a version's weights, where they are still there."""
        if number == 0:
            return self.fleet.initial_weights
        query = (
            select(ROUNDS.c.weights)
            .join(WEIGHTS)
            .where(
                ROUNDS.c.number == number,
                ROUNDS.c.phase == Phase.COMMITTED.value,
                ROUNDS.c.task != "evaluation",
                WEIGHTS.c.data.is_not(None),
            )
        )
        return self.connection.execute(query).scalar()

    def keep_version(self, version: Version, keep: int) -> None:
        """Store a version's weights; all but the last `keep` versions, the first and the released one are let go of.

        The version before it stays in any case, for devices that are fetching it.
        """
        _keep_weights(self.connection, version.weights, version.data)
        if version.encoded is not None:
            base, data = version.encoded
            values = {"sha256": sha256(data), "weights": version.weights, "base": base, "data": data}
            self.connection.execute(insert(ENCODED_WEIGHTS).values(**values))
            oldest = select(ENCODED_WEIGHTS.c.id).order_by(ENCODED_WEIGHTS.c.id.desc()).offset(REMEMBERED).limit(1)
            if (found := self.connection.execute(oldest).scalar()) is not None:
                self.connection.execute(delete(ENCODED_WEIGHTS).where(ENCODED_WEIGHTS.c.id <= found))
        made = (ROUNDS.c.phase == Phase.COMMITTED.value) & (ROUNDS.c.task != "evaluation")
        lately = select(ROUNDS.c.weights).where(made).order_by(ROUNDS.c.number.desc()).limit(keep - 1).subquery()
        kept = set(self.connection.execute(select(lately.c.weights)).scalars())
        kept |= {version.weights, self.fleet.initial_weights, self.fleet.weights}
        if self.fleet.released is not None:
            released = select(ROUNDS.c.weights).where(made, ROUNDS.c.number == self.fleet.released)
            kept |= set(self.connection.execute(released).scalars())
        held = select(WEIGHTS.c.sha256).where(WEIGHTS.c.data.is_not(None), WEIGHTS.c.sha256.not_in(kept))
        gone = list(self.connection.execute(held).scalars())
        if gone:
            self.connection.execute(update(WEIGHTS).where(WEIGHTS.c.sha256.in_(gone)).values(data=None))
            self.connection.execute(
                update(ROUNDS).where(ROUNDS.c.weights.in_(gone), ROUNDS.c.optimizer.is_not(None)).values(optimizer=None)
            )

    def devices(self, names: Iterable[str]) -> dict[str, Device]:
        """Those of these devices that are enrolled."""
        return _devices(self.connection, names)

    def standings(self, round_ids: Iterable[int], names: Iterable[str]) -> dict[tuple[int, str], Standing]:
        """What these rounds know of these devices."""
        rows = self.connection.execute(_STANDINGS, {"ids": list(round_ids), "names": list(names)})
        return {(row.round_id, row.device): Standing(row.seat, row.reported) for row in rows}

    def counted_bytes(self, round_id: int, segment: str) -> int:
        """Up to where a segment of the spool holds reports that count."""
        end = func.max(PARTICIPANTS.c.place + PARTICIPANTS.c.length)
        query = select(end).where(PARTICIPANTS.c.round_id == round_id, PARTICIPANTS.c.segment == segment)
        return int(self.connection.execute(query).scalar() or 0)

    def seat(self, round_id: int, taken: Sequence[int], standings: dict[str, Standing]) -> None:
        """Write the standings of devices that are new in a round; whoever had one of these seats has none now."""
        if taken:
            lost = update(PARTICIPANTS).where(PARTICIPANTS.c.round_id == round_id, PARTICIPANTS.c.seat.in_(taken))
            self.connection.execute(lost.values(seat=None))
        if standings:
            rows = [
                {"round_id": round_id, "device": device, "seat": standing.seat, "reported": standing.reported}
                for device, standing in standings.items()
            ]
            self.connection.execute(insert(PARTICIPANTS), rows)

    def count_reports(self, round_id: int, reports: Sequence[CountedReport], now: float) -> None:
        """Mark the reports of devices as counted."""
        rows = [
            {
                "in_round": round_id,
                "of_device": report.device,
                "segment": report.spooled and report.spooled.segment,
                "place": report.spooled and report.spooled.place,
                "length": report.spooled and report.spooled.length,
                "evaluation": report.evaluation,
            }
            for report in reports
        ]
        self.connection.execute(_REPORTED, rows)
        self.connection.execute(_PARTICIPATED, [{"of_device": report.device, "now": now} for report in reports])

    def saw(self, devices: dict[str, str], now: float) -> None:
        """Note the runtimes of devices that checked in, and the wall-clock time."""
        self.connection.execute(
            _SEEN, [{"of_device": name, "its_runtime": runtime, "now": now} for name, runtime in devices.items()]
        )


_DEVICES = select(DEVICES.c.name, DEVICES.c.secret, DEVICES.c.revoked, DEVICES.c.participated).where(
    DEVICES.c.name.in_(bindparam("names", expanding=True))
)
_STANDINGS = select(PARTICIPANTS.c.round_id, PARTICIPANTS.c.device, PARTICIPANTS.c.seat, PARTICIPANTS.c.reported).where(
    PARTICIPANTS.c.round_id.in_(bindparam("ids", expanding=True)),
    PARTICIPANTS.c.device.in_(bindparam("names", expanding=True)),
)
_REPORTED = (
    update(PARTICIPANTS)
    .where(PARTICIPANTS.c.round_id == bindparam("in_round"), PARTICIPANTS.c.device == bindparam("of_device"))
    .values(reported=True, **{name: bindparam(name) for name in ("segment", "place", "length", "evaluation")})
)
_PARTICIPATED = (
    update(DEVICES)
    .where(DEVICES.c.name == bindparam("of_device"))
    .values(participated=bindparam("now"), reports=DEVICES.c.reports + 1)
)
_SEEN = (
    update(DEVICES)
    .where(DEVICES.c.name == bindparam("of_device"))
    .values(runtime=bindparam("its_runtime"), seen=bindparam("now"))
)


def is_conflict(error: StoreError) -> bool:
    """Whether what was to be written is there already."""
    return isinstance(error.__cause__, IntegrityError)


def _under_way(connection: Connection) -> bool:
    """Whether devices train already."""
    return connection.execute(select(ROUNDS.c.id).where(~OVER, ROUNDS.c.cohort > 0).limit(1)).scalar() is not None


def _devices(connection: Connection, names: Iterable[str]) -> dict[str, Device]:
    rows = connection.execute(_DEVICES, {"names": list(names)})
    return {row.name: Device(bytes(row.secret), row.revoked is not None, row.participated) for row in rows}


def _keep_weights(connection: Connection, identity: str, data: bytes) -> None:
    held = connection.execute(select(WEIGHTS.c.data.is_(None)).where(WEIGHTS.c.sha256 == identity)).scalar()
    if held is None:  # a round whose mean delta is zero makes no new version
        connection.execute(insert(WEIGHTS).values(sha256=identity, data=data))
    elif held:
        connection.execute(update(WEIGHTS).where(WEIGHTS.c.sha256 == identity).values(data=data))


def _optimizer(connection: Connection, number: int) -> bytes | None:
    query = select(ROUNDS.c.optimizer).where(
        ROUNDS.c.number == number, ROUNDS.c.phase == Phase.COMMITTED.value, ROUNDS.c.task != "evaluation"
    )
    data = connection.execute(query).scalar()
    return None if data is None else bytes(data)


def _fleet(row: Row[Any]) -> Fleet:
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


def _round(row: Row[Any], config: RoundConfig) -> Round:
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


def _record(row: Row[Any]) -> RoundRecord:
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


def _result(record: RoundRecord) -> dict[str, Any]:
    names = ("weights", "started", "ended", "seconds", "loss", "accuracy", "examples", "cohort", "clients")
    return {name: getattr(record, name) for name in names}
