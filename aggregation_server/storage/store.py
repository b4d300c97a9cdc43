"""The server's memory: the fleet's state, its rounds, versions of the weights, and devices, in a database.

What is written here is decided elsewhere; every change is a part of a `Ledger`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from sqlalchemy import func, insert, select, update

from aggregation_server.history import Counts, RoundRecord
from aggregation_server.rounds import Round, RoundConfig
from aggregation_server.storage.database import Database, StoreError
from aggregation_server.storage.ledger import Ledger
from aggregation_server.storage.rows import (
    CountedReport,
    Device,
    Fleet,
    Spooled,
    devices_of,
    fleet_of,
    keep_weights,
    optimizer_of,
    record_of_row,
    round_of,
    under_way,
)
from aggregation_server.storage.schema import ENCODED_WEIGHTS, FLEET, OVER, PARTICIPANTS, ROUNDS, WEIGHTS
from device_runtime.errors import InputError
from device_runtime.tensors import sha256


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
            if found is not None and (found.number or found.initial_weights == identity or under_way(connection)):
                return
            keep_weights(connection, identity, initial)
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
            return fleet_of(connection.execute(select(FLEET)).one())

    def open_round(self, config: RoundConfig) -> tuple[Round, Counts] | None:
        """The round that is not over, and its counts."""
        return self.snapshot(config)[1]

    def snapshot(self, config: RoundConfig) -> tuple[Fleet, tuple[Round, Counts] | None]:
        """The fleet's state, and the round that is not over with its counts, at one moment."""
        with self.database.reading() as connection:
            fleet = fleet_of(connection.execute(select(FLEET)).one())
            row = connection.execute(select(ROUNDS).where(~OVER)).one_or_none()
        return fleet, None if row is None else (round_of(row, config), Counts(**row.counts))

    def first_open_id(self) -> int:
        """Rounds with ids below this one are over."""
        with self.database.reading() as connection:
            opened = connection.execute(select(ROUNDS.c.id).where(~OVER)).scalar()
            return int(opened or (connection.execute(select(func.max(ROUNDS.c.id))).scalar() or 0) + 1)

    def devices(self, names: Iterable[str]) -> dict[str, Device]:
        """Those of these devices that are enrolled."""
        with self.database.reading() as connection:
            return devices_of(connection, names)

    def history(self, limit: int, before: int | None = None) -> list[RoundRecord]:
        """The last `limit` rounds that are over, the oldest first; only those whose id is below `before`."""
        query = select(ROUNDS).where(OVER).order_by(ROUNDS.c.id.desc()).limit(limit)
        with self.database.reading() as connection:
            rows = connection.execute(query if before is None else query.where(ROUNDS.c.id < before)).all()
        return [record_of_row(row) for row in reversed(rows)]

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
            return optimizer_of(connection, number)

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
