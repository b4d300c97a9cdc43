"""`Ledger`: one transaction that changes the fleet.

It holds the fleet's row, so that the changes of several servers come one after the other; a crash at any instant leaves
what was before a transaction, or what is after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from aggregation_server.history import Counts, RoundRecord
from aggregation_server.rounds import Phase, Round, RoundConfig, Standing
from aggregation_server.storage.rows import (
    CountedReport,
    Device,
    Version,
    devices_of,
    fleet_of,
    keep_optimizer,
    keep_weights,
    optimizer_of,
    result_columns,
    round_of,
)
from aggregation_server.storage.schema import (
    DEVICES,
    ENCODED_WEIGHTS,
    FLEET,
    MADE_A_VERSION,
    OPTIMIZERS,
    OVER,
    PARTICIPANTS,
    ROUNDS,
    WEIGHTS,
)
from device_runtime.tensors import sha256

REMEMBERED = 16
"""Rounds that are over whose devices are still known, and versions whose encoded form is kept."""


class Ledger:
    """One transaction, with the fleet's row locked.

    Attributes:
        connection: of the transaction.
        fleet: as it was when the transaction began.
        changed: whether the fleet or its open round are written anew.
    """

    def __init__(self, connection: Connection, config: RoundConfig) -> None:
        self.connection = connection
        self.fleet = fleet_of(connection.execute(select(FLEET).with_for_update()).one())
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
        row = self.connection.execute(select(ROUNDS).where(~OVER)).one_or_none()
        if row is None:
            return None
        self._written = round_of(row, self._config), Counts(**row.counts)
        return (*self._written, row.opened)

    def rounds(self, ids: Sequence[int]) -> dict[int, Round]:
        """Those of these rounds that there are."""
        rows = self.connection.execute(select(ROUNDS).where(ROUNDS.c.id.in_(ids)))
        return {row.id: round_of(row, self._config) for row in rows}

    def begin_round(self, number: int, task: str, now: float) -> Round:
        """Open a round; there must be no other."""
        values: dict[str, Any] = {"number": number, "task": task, "phase": Phase.SELECTION.value, "reason": ""}
        values |= {"since": now, "opened": now, "offered": 0, "cohort": 0, "reported": 0, "counts": asdict(Counts())}
        row = self.connection.execute(insert(ROUNDS).values(**values).returning(ROUNDS)).one()
        self.changed = True
        return round_of(row, self._config)

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
        self.connection.execute(update(ROUNDS).where(ROUNDS.c.id == current.id).values(**result_columns(record)))
        keep_optimizer(self.connection, current.id, optimizer)
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
        query = insert(ROUNDS).values(**values | result_columns(record)).returning(ROUNDS.c.id)
        record = replace(record, id=self.connection.execute(query).scalar_one())
        keep_optimizer(self.connection, record.id, optimizer)
        return record

    def optimizer(self, number: int) -> bytes | None:
        """As `Store.optimizer`."""
        return optimizer_of(self.connection, number)

    def evaluated(self, number: int) -> bool:
        """Whether an evaluation of this version was held, or tried."""
        query = select(ROUNDS.c.id).where(ROUNDS.c.number == number, ROUNDS.c.task == "evaluation").limit(1)
        return self.connection.execute(query).scalar() is not None

    def version(self, number: int) -> str | None:
        """The identity of a version's weights, where they are still there."""
        if number == 0:
            return self.fleet.initial_weights
        held = WEIGHTS.c.sha256 == ROUNDS.c.weights
        query = select(WEIGHTS.c.sha256).join(ROUNDS, held).where(ROUNDS.c.number == number, MADE_A_VERSION)
        return self.connection.execute(query).scalar()

    def keep_version(self, version: Version, keep: int) -> None:
        """Store a version's weights; all but the last `keep` versions, the first and the released one are let go of.

        The version before it stays in any case, for devices that are fetching it.
        """
        keep_weights(self.connection, version.weights, version.data)
        if version.encoded is not None:
            base, data = version.encoded
            values = {"sha256": sha256(data), "weights": version.weights, "base": base, "data": data}
            self.connection.execute(insert(ENCODED_WEIGHTS).values(**values))
            oldest = select(ENCODED_WEIGHTS.c.id).order_by(ENCODED_WEIGHTS.c.id.desc()).offset(REMEMBERED).limit(1)
            if (found := self.connection.execute(oldest).scalar()) is not None:
                self.connection.execute(delete(ENCODED_WEIGHTS).where(ENCODED_WEIGHTS.c.id <= found))
        made = select(ROUNDS.c.weights).where(MADE_A_VERSION)
        lately = made.order_by(ROUNDS.c.number.desc()).limit(keep - 1).subquery()
        kept = set(self.connection.execute(select(lately.c.weights)).scalars())
        kept |= {version.weights, self.fleet.initial_weights, self.fleet.weights}
        if self.fleet.released is not None:
            released = made.where(ROUNDS.c.number == self.fleet.released)
            kept |= set(self.connection.execute(released).scalars())
        # Rows go whole: of one that only loses its bytes, SQLite keeps the page that it filled.
        self.connection.execute(delete(WEIGHTS).where(WEIGHTS.c.sha256.not_in(kept)))
        gone = select(OPTIMIZERS.c.round_id).join(ROUNDS).where(ROUNDS.c.weights.not_in(kept))
        self.connection.execute(delete(OPTIMIZERS).where(OPTIMIZERS.c.round_id.in_(gone)))

    def devices(self, names: Iterable[str]) -> dict[str, Device]:
        """Those of these devices that are enrolled."""
        return devices_of(self.connection, names)

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
